"""Compilers for accelerators that need not be there: libtpu's for TPUs, XLA's for NVIDIA GPUs.

On a machine with CPUs alone, memory, copies and collectives are those of the devices that a program
is meant for.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from jax_unmask.runtime import accelerators, compilation
from jax_unmask.runtime.accelerators import Accelerator

# A GPU's compiler asks for its data; those that are the same for all that it is asked about here.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: {count}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache_bytes}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory_bytes}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
_CUDNN = 91000


@dataclasses.dataclass(frozen=True)
class Compiler:
    """A compiler, and the devices that it compiles for.

    Attributes:
        name: for the table, such as "libtpu 0.0.42".
        devices: as `jax.devices` would show them.
        options: the compiler's flags, as a training command would set them on the device.
        capability: of GPUs, which decides what cuDNN offers.
    """

    name: str
    devices: tuple[jax.Device, ...]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    capability: tuple[int, int] | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """A context in which programs are traced and compiled for its devices."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(accelerators.absent(self.devices))
            if self.capability is not None:
                stack.enter_context(_cudnn(self.capability))
            yield


def missing(device: Accelerator) -> str:
    """The reason why `find` finds nothing for a type of device, for the table."""
    if device.topologies is not None:
        return "libtpu is not installed (pip install 'jax_unmask[aot]')"
    if device.processors is not None:
        return "XLA's compiler for GPUs is not installed (pip install 'jax_unmask[cuda]')"
    return f"no compiler is asked for a {device.name} here"


def find(device: Accelerator, count: int, quantized: bool = False) -> Compiler | None:
    """The compiler for so many devices; None where it is not installed, or knows no such device.

    `quantized` is as in `compilation.choose_flags`.
    """
    if device.topologies is not None and importlib.util.find_spec("libtpu"):
        _quiet_libtpu()
        options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
        if device.name == "v4":  # Its two cores are one device, as on a v4 they are.
            options["chip_config_name"] = "megacore"
        shape = f"{device.name}:{device.topologies[count]}"
        found = topologies.get_topology_desc(shape, "tpu", **options).devices
        flags = _flags("LIBTPU_INIT_ARGS", compilation.TPU_FLAGS.get(device.pci, ()))
        return Compiler(_version("libtpu"), tuple(found), flags)
    gpu = device.processors
    if gpu is not None and importlib.util.find_spec("jax_cuda13_plugin"):
        major, minor = gpu.capability
        described = _GPU.format(
            **dataclasses.asdict(gpu),
            major=major,
            minor=minor,
            name=device.name,
            bandwidth=int(device.bandwidth),
            memory_bytes=device.memory_bytes,
        )
        found = topologies.get_topology_desc(
            device.name, "cuda", topology=f"1x1x{count}", target_config=described
        ).devices
        flags = _flags("XLA_FLAGS", compilation.gpu_flags(quantized))
        flags = {name: value.capitalize() for name, value in flags.items()}  # Read as Python's.
        return Compiler(_version("jax-cuda13-plugin"), tuple(found), flags, gpu.capability)
    return None


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _flags(variable: str, wanted: Sequence[str]) -> dict[str, str]:
    """Flags as options, but for those that an environment variable sets, which is read anyway."""
    kept = [flag for flag in wanted if not compilation.is_set(variable, flag)]
    return dict(flag.removeprefix("--").split("=") for flag in kept)


def has_little_effort() -> bool:
    """Whether the compiler was asked to hurry; JAX from 0.12 on has levels instead of efforts."""
    effort: float = getattr(jax.config, "jax_exec_time_optimization_effort", 0.0)
    level: str = jax.config.jax_optimization_level  # type: ignore[attr-defined]
    return effort < 0 or level in ("O0", "O1")


def _quiet_libtpu() -> None:
    """Keeps libtpu from asking the network for this machine, and from locking chips."""
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _cudnn(capability: tuple[int, int]) -> Iterator[None]:
    """Answers JAX's questions to cuDNN and the device, for a device that is not there."""
    import jax._src.cudnn.fused_attention_stablehlo as cudnn

    def version(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    patch = functools.partial(mock.patch.object, cudnn)
    with (
        patch("check_cudnn_version", lambda: _CUDNN),
        patch("check_compute_capability", lambda text: version(text) <= capability),
        patch("is_cuda_compute_capability_equal", lambda text: version(text) == capability),
    ):
        yield
