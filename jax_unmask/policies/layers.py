"""Layers that the policy networks share."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_unmask.denoisers.attention import rotary_table

LAYER_NORM_EPS = 1e-5
ROPE_BASE = 10_000.0
# The network is ~1e-4 of a denoiser forward, so exact float32 products cost nothing and keep the
# likelihood ratios of different batch shapes equal on accelerators that round by default.
PRECISION = jax.lax.Precision.HIGHEST


def required(value: Array | None, name: str, reason: str) -> Array:
    """The value, or an error that names the missing observation and its reader."""
    if value is None:
        raise ValueError(f"the observation lacks {name}, which the policy network reads ({reason})")
    return value


def time_embedding(t: Float[Array, "*B"], dim: int, period: float) -> Float[Array, "*B dim"]:
    """Sinusoidal embedding of t: cosines, then sines, rounded to bfloat16 as the reference does.

    Frequencies are period ** (-i / half) for i < half = dim // 2, so that period 1 repeats cos t
    and sin t. An odd `dim` gets a trailing zero.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    parts = [jnp.cos(angles), jnp.sin(angles)]
    if dim % 2:
        parts.append(jnp.zeros_like(angles[..., :1]))
    # reduce_precision, because XLA may drop a float32 -> bfloat16 -> float32 pair of casts.
    return jax.lax.reduce_precision(
        jnp.concatenate(parts, axis=-1), exponent_bits=8, mantissa_bits=7
    )


def dense(features: int, fan_in: int, name: str, *, initial_bias: float | None = None) -> nn.Dense:
    """A linear layer with the initialisation of torch.nn.Linear: U(-1, 1) / sqrt(fan_in).

    With `initial_bias` the bias starts at this constant instead.
    """
    limit = 1.0 / math.sqrt(fan_in)

    def bias(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        if initial_bias is not None:
            return jnp.full(shape, initial_bias, dtype)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return nn.Dense(
        features,
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        bias_init=bias,
        precision=PRECISION,
        name=name,
    )


def zero_dense(features: int, name: str) -> nn.Dense:
    """A linear layer that starts at zero (AdaLN-zero)."""
    zeros = nn.initializers.zeros_init()
    return nn.Dense(features, kernel_init=zeros, bias_init=zeros, precision=PRECISION, name=name)


def modulation(
    layer: nn.Dense, conditions: Float[Array, "N 2 d"], masked: Bool[Array, "N W"], parts: int
) -> list[Float[Array, "N W d"]]:
    """AdaLN vectors of every position, split into `parts`.

    A position's condition is one of two vectors per row (masked or not), so the linear map runs
    on those two and the result is selected; it would be a third of the network's work otherwise.
    """
    vectors = layer(conditions)
    selected = jnp.where(masked[..., None], vectors[:, 1, None], vectors[:, 0, None])
    return jnp.split(selected, parts, axis=-1)


def rotate_pairs(x: Float[Array, "N H W h"]) -> Float[Array, "N H W h"]:
    """Rotary embedding on even/odd pairs, positions counted from 0; halves are concatenated.

    The halves leave in another order than they came; queries and keys share it, so that only
    their inner products matter.
    """
    table = rotary_table(jnp.arange(x.shape[-2])[None], x.shape[-1], ROPE_BASE)
    cos, sin = (each[0, :, 0] for each in table)
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.concatenate([even * cos - odd * sin, even * sin + odd * cos], axis=-1)


class Conditioner(nn.Module):
    """Condition vectors of a row: an embedding of the mask bit plus an MLP of the time.

    Attributes:
        dim: width of the condition.
        time_embed_dim: width of the sinusoidal embedding.
        time_period: its longest period.
    """

    dim: int
    time_embed_dim: int
    time_period: float

    @nn.compact
    def __call__(self, t: Float[Array, " N"]) -> Float[Array, "N 2 d"]:
        """Returns the conditions of unmasked ([:, 0]) and masked ([:, 1]) positions."""
        embedded = time_embedding(t, self.time_embed_dim, self.time_period)
        time = dense(self.dim, self.time_embed_dim, "time_in")(embedded)
        time = dense(self.dim, self.dim, "time_out")(nn.silu(time))
        table = self.param(
            "mask_embedding", nn.initializers.normal(1.0), (2, self.dim), jnp.float32
        )
        return table[None] + time[:, None]
