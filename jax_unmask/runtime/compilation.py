"""The persistent compilation cache, and what compilation cost."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Sequence

import jax

from jax_unmask.runtime.files import atomic_write

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"
LOG_ABOVE_SECONDS = 1.0

TPU_FLAGS = {
    # v6e. By default it gathers weights while nothing is computed.
    "0x006f": (
        "--xla_tpu_enable_async_collective_fusion=true",
        "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
        "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
        "--xla_enable_async_all_gather=true",
        "--xla_tpu_overlap_compute_collective_tc=true",
    )
}
"""Flags of the TPU's compiler, by the PCI device id of its chip."""

GPU_FLAGS = ("--xla_gpu_enable_triton_gemm=false",)
"""Flags of XLA for NVIDIA's GPUs, see `gpu_flags`."""

_DEVICES = pathlib.Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"

logger = logging.getLogger(__name__)


def gpu_flags(quantized: bool) -> tuple[str, ...]:
    """`GPU_FLAGS`, where this JAX gains by them.

    From 0.12 on products of cuBLAS read a layer's slice of stacked weights in place, and those of
    Triton get a copy of it. Weights of one byte are widened within products of Triton alone.
    """
    return () if quantized or jax.__version_info__ < (0, 12) else GPU_FLAGS


def choose_flags(quantized: bool = False) -> None:
    """Sets the compiler's flags for this machine's chip, but for those that the user has set.

    To be called before JAX uses a device: the compilers read them once.

    Args:
        quantized: whether the denoiser's weights have one byte.
    """
    chips, vendors = (
        {file.read_text().strip() for file in _DEVICES.glob(f"*/{name}")}
        for name in ("device", "vendor")
    )
    _add("LIBTPU_INIT_ARGS", [flag for chip in chips for flag in TPU_FLAGS.get(chip, ())])
    if _NVIDIA in vendors:
        _add("XLA_FLAGS", gpu_flags(quantized))


def _add(variable: str, wanted: Sequence[str]) -> None:
    missing = [flag for flag in wanted if not is_set(variable, flag)]
    if missing:
        os.environ[variable] = " ".join([*os.environ.get(variable, "").split(), *missing])
        logger.info("Flags of the compiler, added to %s: %s", variable, " ".join(missing))


def is_set(variable: str, flag: str) -> bool:
    """Whether an environment variable gives a value for a flag "--NAME=VALUE"."""
    given = {each.partition("=")[0] for each in os.environ.get(variable, "").split()}
    return flag.partition("=")[0] in given


def enable_cache() -> pathlib.Path | None:
    """Keeps compiled programs on disk, so that a resumed or repeated run compiles in no time.

    The directory is `$JAX_COMPILATION_CACHE_DIR`, or else one under `$XDG_CACHE_HOME` (~/.cache)
    that belongs to this kind of CPU, because programs for one CPU may crash on another that shares
    the home directory. `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    JAX does not write entries atomically. One that a killed process left half written cannot be
    decompressed: JAX warns and compiles, in every run until that file, which the warning does not
    name, is deleted. Deleting the whole directory is always safe.

    Returns:
        The directory, or None where the cache is off.
    """
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    directory = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not directory:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        directory = str(pathlib.Path(home) / "jax_unmask" / f"xla-{_machine()}")
        jax.config.update("jax_compilation_cache_dir", directory)
    return pathlib.Path(directory)


def _machine() -> str:
    """Short digest of the CPU's architecture and instruction sets."""
    description = platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        description += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(description.encode()).hexdigest()[:12]


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Says that something is compiled in this block, and how long that will take.

    As long as the last time; if there was none, no longer than others of the same kind with the
    same model.

    Args:
        what: names it, as in "rollouts of threshold with sudoku": the kind, "of" what, the model.
    """
    file, seconds = _record(), {}
    if file is not None:
        with contextlib.suppress(OSError, ValueError):
            seconds = dict(json.loads(file.read_text(encoding="utf-8")))
    kind = _kind(what)
    others = [value for name, value in seconds.items() if _kind(name) == kind]
    if what in seconds:
        expected = f"{seconds[what]:.0f} s the last time"
    elif others:
        expected = f"about {max(others):.0f} s, as other {kind[0]} with it"
    else:
        expected = "the first time seconds for a small model, minutes for a large one"
    if not jax.process_index():
        logger.info("Compiling %s (%s) ...", what, expected)
    began = time.monotonic()
    yield
    seconds[what] = time.monotonic() - began
    if file is not None and not jax.process_index():
        with contextlib.suppress(OSError):
            atomic_write(file, json.dumps(seconds, indent=1))


def _kind(what: str) -> tuple[str, str]:
    """Kind of program and model of what `announced` names."""
    program, _, model = what.rpartition(" with ")
    return program.partition(" of ")[0], model


def _record() -> pathlib.Path | None:
    """The file of what compiling took, beside the compiled programs; None where none are kept."""
    directory = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not directory or "://" in directory:
        return None
    return pathlib.Path(directory) / "jax_unmask_seconds.json"


@dataclasses.dataclass
class CompileTimes:
    """Counts compilations from its creation on, and logs each that takes over a second.

    Attributes:
        programs: programs compiled or read from the cache.
        cache_hits: those of them that came from the persistent cache.
        seconds: wall time spent on all of them.
    """

    programs: int = 0
    cache_hits: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    def _on_duration(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event != COMPILE_EVENT:
            return
        self.programs += 1
        self.seconds += duration_secs
        if duration_secs >= LOG_ABOVE_SECONDS:
            logger.info(
                "Compiled %s in %.1f s", details.get("fun_name", "a program"), duration_secs
            )

    def _on_event(self, event: str, **_: str | int) -> None:
        if event == CACHE_HIT_EVENT:
            self.cache_hits += 1
