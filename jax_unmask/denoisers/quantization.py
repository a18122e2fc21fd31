"""Quantised weights for a denoiser that is not trained: a byte per weight, a scale per channel.

The matrices of the layers, nine tenths of a large model, are stored as int8 or fp8 (e4m3) with one
float32 scale for each output channel (of each expert). Products are taken in the compute type, in
which both are exact, and scaled afterwards; activations are not quantised. Embeddings, the output
projection, norms, biases and routers stay as they are. Calibration and storage are Qwix's
(https://github.com/google/qwix).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

TYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
"""Stored type by kind of quantisation."""


def check_kind(kind: str) -> None:
    """Raises ValueError for an unknown kind, ImportError where Qwix is not installed."""
    if kind not in TYPES:
        raise ValueError(f"quantization={kind!r} is unknown; choose {' or '.join(TYPES)}")
    _qwix()


def quantize_params(params: Any, kind: str) -> Any:
    """Parameters of a denoiser with a `qwix.QArray` in place of each matrix of its layers.

    Matrices are replaced one by one, so that there never are two copies of all of them.

    Raises:
        ValueError: there is no such kind, or the parameters are quantised already.
        ImportError: Qwix is not installed.
    """
    check_kind(kind)
    flat = flatten_dict(params)
    for path in list(flat):
        flat[path] = quantize(path, flat[path], kind)
    return unflatten_dict(flat)


def quantize(path: tuple[str, ...], value: Any, kind: str) -> Any:
    """One parameter, quantised if it is a matrix of a layer, by its path."""
    if is_quantized(value):
        raise ValueError(f"parameter {'/'.join(path)} is quantised already")
    is_expert = path[-2:-1] == ("experts",) and path[-1] in ("gate", "up", "down")
    if path[-1] != "kernel" and not is_expert:
        return value
    # The last but one axis is summed over; each index of the others has a scale of its own.
    channels = tuple(axis for axis in range(value.ndim - 1) if axis != value.ndim - 3)

    def of_layer(matrix: Array) -> Any:
        return _qwix().quantize(matrix.astype(jnp.float32), TYPES[kind], channelwise_axes=channels)

    # Layer by layer: the float32 copies of a stack would be larger than the model.
    return jax.jit(functools.partial(jax.lax.map, of_layer))(value)


def is_quantized(value: Any) -> bool:
    """Whether a parameter is quantised."""
    return hasattr(value, "qvalue")


def matmul(x: Float[Array, "*B I"], kernel: Any) -> Float[Array, "*B O"]:
    """x @ kernel in the type of `x`, whether the kernel [I, O] is quantised or not."""
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    if not is_quantized(kernel):
        return jax.lax.dot_general(x, kernel.astype(x.dtype), dims)
    # Not in float32: a GPU would write those products to memory before it scales them.
    out = jax.lax.dot_general(x, kernel.qvalue.astype(x.dtype), dims)
    return (out * kernel.scale[0]).astype(x.dtype)


def ragged_matmul(
    x: Float[Array, "T I"], kernel: Any, sizes: Int[Array, " E"], groups: Int[Array, " T"]
) -> Float[Array, "T O"]:
    """Products of consecutive groups of rows, each with one matrix of `kernel` [E, I, O].

    `sizes` are the rows of each group, `groups` the group of each row.
    """
    if not is_quantized(kernel):
        return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)
    out = jax.lax.ragged_dot(x, kernel.qvalue.astype(x.dtype), sizes)
    return (out * kernel.scale[groups, 0]).astype(x.dtype)


def _qwix() -> Any:
    try:
        import qwix  # It imports more than most uses of a denoiser need.
    except ImportError as error:
        raise ImportError(
            "quantised weights need Qwix: pip install 'jax_unmask[quantization]'"
        ) from error
    return qwix
