"""Softmax attention and rotary position embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def attention(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K G d"],
    value: Float[Array, "B K G d"],
    mask: Bool[Array, "#B #Q K"] | None = None,
) -> Float[Array, "B Q H d"]:
    """Scaled dot-product attention, grouped where G < H (key head j serves H / G query heads).

    Scores and softmax are float32. A query whose keys are all hidden gets the mean of the values,
    which is finite; nothing reads such rows.

    Args:
        query: queries.
        key: keys.
        value: values.
        mask: True where a query may see a key; None lets every query see every key.

    Returns:
        The attended values in the type of `query`.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    # Head-major copies make both products plain batched matrix products: a tenth off a forward on
    # CPUs against `jax.nn.dot_product_attention`, and other backends do not mind.
    query = query.transpose(0, 2, 1, 3).reshape(batch, groups, heads // groups, length, width)
    key = key.transpose(0, 2, 1, 3)
    value = value.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bghqd,bgkd->bghqk", query, key, preferred_element_type=jnp.float32)
    scores *= width**-0.5
    if mask is not None:
        # The lowest finite number, not -inf: a row without any visible key must not become NaN.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    if jax.default_backend() == "cpu":
        out = _weighted_sum(scores, value)
    else:
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        out = jnp.einsum("bghqk,bgkd->bghqd", weights, value)
    return out.reshape(batch, heads, length, width).transpose(0, 2, 1, 3)


def _weighted_sum(
    scores: Float[Array, "B G h Q K"], value: Float[Array, "B G K d"]
) -> Float[Array, "B G h Q d"]:
    """Softmax of the scores times the values, divided by its sum after the product.

    Heads are narrower than sequences are long, so that is less to divide; CPUs notice.
    """
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
        "bghqk,bgkd->bghqd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(value.dtype)


def rotary_table(
    positions: Int[Array, "#B S"], head_dim: int, theta: float
) -> tuple[Float[Array, "#B S 1 d2"], Float[Array, "#B S 1 d2"]]:
    """Cosines and sines of rotary position embeddings, float32.

    Su et al. 2021, "RoFormer", arXiv 2104.09864, with frequencies theta^(-2i / head_dim).

    Args:
        positions: position of each token.
        head_dim: width d of a head; the table holds d / 2 frequencies.
        theta: base of the frequencies.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S H d"], table: tuple[Float[Array, "#B S 1 d2"], Float[Array, "#B S 1 d2"]]
) -> Float[Array, "B S H d"]:
    """Turns feature i against feature i + r / 2 (the half-split layout), in the table's type.

    A table of r / 2 < d / 2 frequencies leaves the features from r on as they are.
    """
    cos, sin = table
    half = cos.shape[-1]
    turning = x.astype(cos.dtype)
    first, second = turning[..., :half], turning[..., half : 2 * half]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
