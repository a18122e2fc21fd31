"""Flash attention on TPUs: JAX's Pallas kernel, with padding masked."""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention
from jaxtyping import Array, Bool, Float

from jax_unmask.runtime.mesh import active_over, on_each_device, spec

# Largest block of queries and of keys. Lengths that the kernel takes are multiples of its blocks:
# those of keys multiples of the lanes of a register, those of queries of its sublanes.
_BLOCK, _LANES, _SUBLANES = 512, 128, 16


def flash(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K G d"],
    value: Float[Array, "B K G d"],
    mask: Bool[Array, "#B 1 K"] | None = None,
) -> Float[Array, "B Q H d"]:
    """`attention.attention` in one kernel; `mask` must be the same for all queries.

    Keys are hidden by a segment other than that of all queries, so padding costs no mask of the
    size of the scores. Lengths are padded to multiples of blocks; the padding is hidden too. On a
    mesh each device has its rows and heads.
    """
    if active_over(query.shape[0]) is None:
        return _on_one_device(query, key, value, mask)
    if mask is None:
        mask = jnp.ones((query.shape[0], 1, key.shape[1]), bool)
    heads = spec("batch", None, "heads")
    rows = jnp.broadcast_to(mask, (query.shape[0], *mask.shape[1:]))
    split = on_each_device(
        _on_one_device, (heads, heads, heads, spec("batch")), heads, check_vma=False
    )
    out: Array = split(query, key, value, rows)
    return out


def _on_one_device(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K G d"],
    value: Float[Array, "B K G d"],
    mask: Bool[Array, "#B 1 K"] | None,
) -> Float[Array, "B Q H d"]:
    batch, queries, heads, width = query.shape
    keys, groups = key.shape[1:3]
    visible = jnp.ones((batch, keys), bool)
    if mask is not None:
        visible = jnp.broadcast_to(mask[:, 0], (batch, keys))

    def block(length: int, unit: int) -> int:
        return min(length + -length % unit, _BLOCK)

    def head_major(x: Array, block: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)

    of_queries, of_keys = block(queries, _SUBLANES), block(keys, _LANES)
    sizes = BlockSizes(block_q=of_queries, block_k_major=of_keys, block_k=of_keys, block_b=1)
    # Query head j is served by key head j // (H / G).
    key, value = (jnp.repeat(head_major(x, of_keys), heads // groups, axis=1) for x in (key, value))
    query = head_major(query, of_queries)
    visible = jnp.pad(visible, ((0, 0), (0, -keys % of_keys)))
    segments = SegmentIds(
        q=jnp.ones((batch, query.shape[2]), jnp.int32), kv=visible.astype(jnp.int32)
    )
    out: Array = flash_attention(
        query, key, value, segment_ids=segments, sm_scale=width**-0.5, block_sizes=sizes
    )
    return out.transpose(0, 2, 1, 3)[:, :queries]
