"""The machine: what it is, how fast it multiplies matrices, how much memory was used."""

import dataclasses
import os
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

MATMUL_SIZE = {"cpu": 1024}
"""Side of the square matrices by backend; large enough to reach the peak, no larger."""
_DEFAULT_MATMUL_SIZE = 8192
_CHAIN = 8
_SECONDS = 1.0
_MIN_REPEATS, _MAX_REPEATS = 3, 100


@dataclasses.dataclass(frozen=True)
class MatmulPeak:
    """The fastest matrix product that was measured on this machine."""

    size: int  # Side of the square matrices.
    dtype: str  # In JAX's default precision, as in the denoiser (for float32 that may be TF32).
    tflops_per_second: float


def measure_matmul_peak(dtype: DTypeLike) -> MatmulPeak:
    """Times products of square matrices and takes the best.

    A chain of dependent products runs in one program, so that the time to start a program counts
    little.
    """
    size = MATMUL_SIZE.get(jax.default_backend(), _DEFAULT_MATMUL_SIZE)
    # Entries of standard deviation size^-1/2 keep the chain's numbers at order 1: devices draw less
    # power, and run faster, on zeros and infinities.
    left = jax.random.normal(jax.random.key(0), (size, size), dtype) * size**-0.5
    right = jax.random.normal(jax.random.key(1), (size, size), dtype)

    @jax.jit
    def chain(left: jax.Array, right: jax.Array) -> jax.Array:
        for _ in range(_CHAIN):
            right = jnp.matmul(left, right)
        return right

    jax.block_until_ready(chain(left, right))
    seconds: list[float] = []
    while len(seconds) < _MIN_REPEATS or (sum(seconds) < _SECONDS and len(seconds) < _MAX_REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(chain(left, right))
        seconds.append(time.perf_counter() - began)
    flops = 2 * size**3 * _CHAIN
    return MatmulPeak(size, np.dtype(dtype).name, flops / min(seconds) / 1e12)


def peak_bytes() -> int | None:
    """Peak memory of this process on its first device so far; None where it is not told (CPUs)."""
    statistics = jax.local_devices()[0].memory_stats()
    return None if statistics is None else statistics.get("peak_bytes_in_use")


def program_bytes(compiled: Any) -> int | None:
    """Arguments, results and temporaries of one compiled program; None where it is not told."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def describe() -> dict[str, Any]:
    """Device and software, as plain values."""
    device = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
