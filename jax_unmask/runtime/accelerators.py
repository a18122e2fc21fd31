"""Speed and memory of accelerators, from their makers' data sheets."""

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Multiprocessors:
    """The processors of a GPU, as its compiler asks for them."""

    count: int
    clock_ghz: float
    cache_bytes: int
    capability: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX sees it.

    Attributes:
        name: short name.
        kind: regular expression for JAX's `device_kind`.
        memory_bytes: its memory.
        flops: dense bfloat16 matrix products, operations per second.
        bandwidth: of its memory, bytes per second.
        link: bytes per second that it is assumed to receive in a collective: 45 % of what all its
            links carry on TPUs, 40 % on GPUs.
        cores: what a number of devices in a name such as "v5p-64" counts: 2 cores per device, or 1.
        clock_ghz: of a TPU, assumed: matrix units that are always busy reach the peak with it.
        pci: of a TPU, the id of its PCI device.
        topologies: of a TPU, those that there are, by number of devices.
        processors: of a GPU, where its compiler can be asked without it.
    """

    name: str
    kind: str
    memory_bytes: int
    flops: float
    bandwidth: float
    link: float
    cores: int = 1
    clock_ghz: float = 0.0
    pci: str = ""
    topologies: Mapping[int, str] | None = None
    processors: Multiprocessors | None = None

    @property
    def balance(self) -> float:
        """Positions of a forward whose products last as long as the reading of 16-bit weights.

        Each weight has two bytes, and two operations for each position.
        """
        return self.flops / self.bandwidth


GB = 10**9
_FLAT = {2**n: f"{2 ** (n // 2)}x{2 ** ((n + 1) // 2)}" for n in (0, 2, 3, 4, 5, 6, 7, 8)}
_CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"} | {
    64 * 2**n: "x".join(str(4 * 2 ** ((n + axis) // 3)) for axis in range(3)) for n in range(7)
}
_HOPPER = Multiprocessors(132, 1.98, 50 * 2**20, (9, 0))
# TPUs: cloud.google.com/tpu/docs, the page of each version. GPUs: NVIDIA's data sheets, SXM forms,
# without sparsity.
ACCELERATORS = (
    Accelerator(
        "v4", r"TPU v4", 32 * GB, 275e12, 1.23e12, 135e9, cores=2, clock_ghz=1.05, topologies=_CUBES
    ),
    Accelerator(
        "v5e", r"TPU v5 ?(lite|e)", 16 * GB, 197e12, 0.82e12, 90e9, clock_ghz=1.5, topologies=_FLAT
    ),
    Accelerator(
        "v5p",
        r"TPU v5p?",
        95 * GB,
        459e12,
        2.77e12,
        270e9,
        cores=2,
        clock_ghz=1.75,
        topologies=_CUBES,
    ),
    Accelerator(
        "v6e",
        r"TPU v6 ?(lite|e)",
        32 * GB,
        918e12,
        1.64e12,
        180e9,
        clock_ghz=1.75,
        pci="0x006f",
        topologies=_FLAT,
    ),
    Accelerator("a100", r"NVIDIA A100.*40GB", 40 * GB, 312e12, 1.56e12, 240e9),
    Accelerator("a100-80g", r"NVIDIA A100.*80GB", 80 * GB, 312e12, 2.04e12, 240e9),
    Accelerator("h100", r"NVIDIA H100.*", 80 * GB, 989e12, 3.35e12, 360e9, processors=_HOPPER),
    Accelerator("h200", r"NVIDIA H200.*", 141 * GB, 989e12, 4.8e12, 360e9, processors=_HOPPER),
    Accelerator("b200", r"NVIDIA B200.*", 180 * GB, 2250e12, 8.0e12, 720e9),
)


MOST_DEVICES = 10_000
"""Most that a plan stands in for: the largest machines have fewer."""


_absent: contextvars.ContextVar[tuple[jax.Device, ...]] = contextvars.ContextVar(
    "absent", default=()
)


@contextlib.contextmanager
def absent(devices: Sequence[jax.Device]) -> Iterator[None]:
    """A context in which programs are compiled for devices that only a compiler knows."""
    token = _absent.set(tuple(devices))
    try:
        yield
    finally:
        _absent.reset(token)


def are_absent() -> bool:
    """Whether `devices` are only known to a compiler."""
    return bool(_absent.get())


def devices() -> list[jax.Device]:
    """The devices that programs are traced and compiled for; all of all processes."""
    return list(_absent.get()) or jax.devices()


def platform() -> str:
    """Their platform: "cpu", "gpu" or "tpu"."""
    found: str = devices()[0].platform if are_absent() else jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found


def here() -> Accelerator | None:
    """The devices of this process; None where they are in no table, such as CPUs."""
    kind = devices()[0].device_kind
    return next((each for each in ACCELERATORS if re.fullmatch(each.kind, kind)), None)


def parse(text: str) -> tuple[Accelerator, int]:
    """Reads "h100x8" (8 devices), or "v5e-16" as cloud types are called.

    The number in a TPU's type counts chips, or cores for generations with two cores to a chip,
    which JAX shows as one device: "v5p-64" are 32 devices.

    Raises:
        ValueError: there is no such accelerator, or no such number of them.
    """
    by_name = {each.name: each for each in ACCELERATORS}
    match = re.fullmatch(r"(?P<name>.+?)(?:x(?P<devices>\d+)|-(?P<type>\d+))", text.lower())
    name = (match["name"] if match else text.lower()).replace("v5litepod", "v5e")
    if match is None or name not in by_name:
        raise ValueError(
            f"--devices={text!r}: give a name and a number, such as h100x8 or v5e-16; known are "
            + ", ".join(by_name)
        )
    found = by_name[name]
    digits = match["devices"] or match["type"]
    count = int(digits) if len(digits) < 10 else MOST_DEVICES + 1
    per_device = found.cores if match["type"] else 1
    if count < 1 or count % per_device:
        raise ValueError(
            f"--devices={text!r}: {name}-N counts cores, {per_device} to a device"
            if per_device > 1
            else f"--devices={text!r}: there must be at least one"
        )
    if count // per_device > MOST_DEVICES:
        raise ValueError(f"--devices={text!r}: there may be at most {MOST_DEVICES:,}")
    count //= per_device
    if found.topologies is not None and count not in found.topologies:
        sizes = ", ".join(str(size * per_device) for size in found.topologies)
        raise ValueError(
            f"--devices={text!r}: a slice has {sizes} " + ("cores" if per_device > 1 else "chips")
        )
    return found, count
