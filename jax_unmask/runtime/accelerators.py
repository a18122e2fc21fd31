"""Speed and memory of accelerators, from their makers' data sheets."""

from __future__ import annotations

import dataclasses
import re

import jax


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX sees it.

    Attributes:
        name: short name.
        kind: regular expression for JAX's `device_kind`.
        memory_bytes: its memory.
        flops: dense bfloat16 matrix products, operations per second.
        cores: what a number of devices in a name such as "v5p-64" counts: 2 cores per device, or 1.
    """

    name: str
    kind: str
    memory_bytes: int
    flops: float
    cores: int = 1


GB = 10**9
# TPUs: cloud.google.com/tpu/docs, the page of each version. GPUs: NVIDIA's data sheets, SXM forms,
# without sparsity.
ACCELERATORS = (
    Accelerator("v4", r"TPU v4", 32 * GB, 275e12, cores=2),
    Accelerator("v5e", r"TPU v5 ?(lite|e)", 16 * GB, 197e12),
    Accelerator("v5p", r"TPU v5p?", 95 * GB, 459e12, cores=2),
    Accelerator("v6e", r"TPU v6 ?(lite|e)", 32 * GB, 918e12),
    Accelerator("a100", r"NVIDIA A100.*40GB", 40 * GB, 312e12),
    Accelerator("a100-80g", r"NVIDIA A100.*80GB", 80 * GB, 312e12),
    Accelerator("h100", r"NVIDIA H100.*", 80 * GB, 989e12),
    Accelerator("h200", r"NVIDIA H200.*", 141 * GB, 989e12),
    Accelerator("b200", r"NVIDIA B200.*", 180 * GB, 2250e12),
)


MOST_DEVICES = 10_000
"""Most that a plan stands in for: the largest machines have fewer."""


def here() -> Accelerator | None:
    """The devices of this process; None where they are in no table, such as CPUs."""
    kind = jax.local_devices()[0].device_kind
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
    return found, count // per_device
