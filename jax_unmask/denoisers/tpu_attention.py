"""Flash attention on TPUs: JAX's Pallas kernel, with padding masked."""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention
from jaxtyping import Array, Bool, Float

# Lengths that the kernel takes are multiples of its blocks.
_BLOCK = 128


def flash(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K G d"],
    value: Float[Array, "B K G d"],
    mask: Bool[Array, "#B 1 K"] | None = None,
) -> Float[Array, "B Q H d"]:
    """`attention.attention` in one kernel; `mask` must be the same for all queries.

    Keys are hidden by a segment other than that of all queries, so padding costs no mask of the
    size of the scores. Lengths are padded to multiples of 128; the padding is hidden too.
    """
    batch, queries, heads, width = query.shape
    keys, groups = key.shape[1:3]
    visible = jnp.ones((batch, keys), bool)
    if mask is not None:
        visible = jnp.broadcast_to(mask[:, 0], (batch, keys))

    def head_major(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)

    # Query head j is served by key head j // (H / G).
    key, value = (jnp.repeat(head_major(x), heads // groups, axis=1) for x in (key, value))
    query = head_major(query)
    visible = jnp.pad(visible, ((0, 0), (0, -keys % _BLOCK)))
    segments = SegmentIds(
        q=jnp.ones((batch, query.shape[2]), jnp.int32), kv=visible.astype(jnp.int32)
    )
    out: Array = flash_attention(query, key, value, segment_ids=segments, sm_scale=width**-0.5)
    return out.transpose(0, 2, 1, 3)[:, :queries]
