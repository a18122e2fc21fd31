"""The transformer with a cache of keys and values: a forward that fills it, one that reads it.

Both are the layers of `Denoiser` over the same parameters. The cache has a fixed shape and stays
where it is: a fill writes the rows that it was asked for, a read copies nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import Beside, rotary_table
from jax_unmask.denoisers.config import DenoiserConfig, LayerRun
from jax_unmask.denoisers.positions import block_causal, default_positions, unshift
from jax_unmask.denoisers.sharding import look_up
from jax_unmask.denoisers.transformer import (
    Block,
    Params,
    RMSNorm,
    Table,
)
from jax_unmask.runtime.mesh import constrain

Put = Callable[[Array, Array], Array]
"""Writes new rows [F, ...] into those of an array [B, ...] that they belong to."""


@struct.dataclass
class KeyValueCache:
    """Keys (rotated) and values of K positions in B rows, by run of equal layers (N layers each).

    Head by head, which is how attention reads them.
    """

    keys: tuple[Float[Array, "N B G K d"], ...]
    values: tuple[Float[Array, "N B G K d"], ...]


def empty_cache(config: DenoiserConfig, rows: int, length: int) -> KeyValueCache:
    """A cache of zeros in the compute type, for so many rows and positions."""

    def zeros() -> tuple[Array, ...]:
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        return tuple(
            constrain(
                jnp.zeros((run.stop - run.start, *shape), config.dtype), None, "batch", "heads"
            )
            for run in config.layer_runs
        )

    return KeyValueCache(keys=zeros(), values=zeros())


def cache_bytes(config: DenoiserConfig, length: int) -> int:
    """Bytes of the cache of one row."""
    size = jnp.dtype(config.dtype).itemsize
    return 2 * size * config.num_layers * config.num_kv_heads * config.head_dim * length


def fill(
    config: DenoiserConfig,
    params: Params,
    cache: KeyValueCache,
    put: Put,
    tokens: Int[Array, "F S"],
    attention_mask: Bool[Array, "F S"],
    last: int,
) -> tuple[Float[Array, "F L D"], KeyValueCache]:
    """A forward over whole sequences, whose keys and values go into the first S of the cache.

    Args:
        config: the architecture.
        params: the denoiser's parameters.
        cache: the cache, of at least S positions.
        put: writes the F rows of this forward into those of the cache; the others stay.
        tokens: token ids.
        attention_mask: True where a token is real.
        last: positions L to give, the last ones.

    Returns:
        Last hidden states, as `Denoiser.hidden(tokens, attention_mask, last=L)` gives them, and
        the cache.
    """
    batch, length = tokens.shape
    positions = default_positions(attention_mask, length)
    mask = attention_mask[:, None, :]
    if config.attention_block is not None:
        mask = mask & block_causal(positions, config.attention_block)
    table = _table(config, positions)
    x = _embed(config, params, tokens)
    window = min(last + config.logits_shift, length)
    keys, values = list(cache.keys), list(cache.values)
    for number, run in enumerate(config.layer_runs):
        block, stacked = _block(config, run), params[run.name]

        def layer(
            index: Array | int,
            carry: tuple[Array, Array, Array],
            block: Block = block,
            stacked: Params = stacked,
            last: int | None = None,
        ) -> tuple[Array, Array, Array]:
            x, *stored = carry
            variables = {"params": _take(stacked, index)}
            x, kept = _apply(block, variables, x, table, mask, batch, last, True)
            new = (leaf.transpose(0, 2, 1, 3) for leaf in kept)
            k, v = (
                _write(old, index, put(_take(old, index)[:, :, :length], leaf))
                for old, leaf in zip(stored, new, strict=True)
            )
            return x, k, v

        depth = run.stop - run.start
        is_last_run = number == len(config.layer_runs) - 1
        carry = (x, keys[number], values[number])
        carry = jax.lax.fori_loop(0, depth - is_last_run, layer, carry)
        if is_last_run:
            # The last layer computes nothing but keys and values for positions nobody asked for.
            carry = layer(depth - 1, carry, last=window)
        x, keys[number], values[number] = carry
    hidden = _normed(config, params, x).reshape(batch, window, -1)
    if config.logits_shift:
        hidden = unshift(hidden, attention_mask)
    return hidden[:, -last:], KeyValueCache(tuple(keys), tuple(values))


def read(
    config: DenoiserConfig,
    params: Params,
    cache: KeyValueCache,
    tokens: Int[Array, "B W"],
    positions: Int[Array, "B W"],
    mask: Bool[Array, "B W"],
    cached_mask: Bool[Array, "B K"],
    *,
    keep: bool = False,
) -> tuple[Float[Array, "B W D"], KeyValueCache | None]:
    """A forward over a few positions of each row, which see each other and cached ones.

    Args:
        config: the architecture.
        params: the denoiser's parameters.
        cache: the cache.
        tokens: token ids of the few.
        positions: of these in their text.
        mask: which of them exist; the others are seen by none, and what comes out means nothing.
        cached_mask: which cached positions they see.
        keep: whether to give their keys and values too, for `write`.

    Returns:
        Last hidden states of the few positions, and a cache [N, B, G, W, d] of them or None. Where
        the head scores the next token (`logits_shift`), states are moved within the few: the first
        keeps its own.
    """
    batch = tokens.shape[0]
    table = _table(config, positions)
    x = _embed(config, params, tokens)
    keys, values = [], []
    for number, run in enumerate(config.layer_runs):
        block, stacked = _block(config, run), params[run.name]
        of_run = (cache.keys[number], cache.values[number])

        def layer(
            x: Array,
            index: Array,
            block: Block = block,
            stacked: Params = stacked,
            of_run: tuple[Array, Array] = of_run,
        ) -> tuple[Array, tuple[Array, ...] | None]:
            k, v = _take(of_run, index)
            beside = Beside(keys=k, values=v, cached_mask=cached_mask[:, None], mask=mask[:, None])
            variables = {"params": _take(stacked, index)}
            x, kept = _apply(block, variables, x, table, beside, batch, None, keep)
            return x, None if kept is None else tuple(leaf.transpose(0, 2, 1, 3) for leaf in kept)

        x, kept = jax.lax.scan(layer, x, jnp.arange(run.stop - run.start))
        if kept is not None:
            keys.append(kept[0])
            values.append(kept[1])
    hidden = _normed(config, params, x).reshape(batch, -1, x.shape[-1])
    if config.logits_shift:
        hidden = unshift(hidden, None)
    return hidden, KeyValueCache(tuple(keys), tuple(values)) if keep else None


def write(cache: KeyValueCache, kept: KeyValueCache, index: Int[Array, "B W"]) -> KeyValueCache:
    """The cache with keys and values [N, B, G, W, d] written to positions of each row.

    Args:
        cache: the cache, of K positions.
        kept: from `read`.
        index: where they belong; those of K and more are dropped.
    """

    def place(old: Array, new: Array, at: Array) -> Array:
        return old.at[:, :, at].set(new.astype(old.dtype), mode="drop")

    of_rows = jax.vmap(place, in_axes=(1, 1, 0), out_axes=1)
    return jax.tree.map(lambda old, new: of_rows(old, new, index), cache, kept)


def _take(tree: Any, index: Array | int) -> Any:
    """What one layer has of stacked arrays."""
    take = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
    return jax.tree.map(take, tree)


def _write(stacked: Array, index: Array | int, of_layer: Array) -> Array:
    """Stacked arrays with (the first positions of) one layer replaced."""
    start = (index, *(0 for _ in of_layer.shape))
    return jax.lax.dynamic_update_slice(stacked, of_layer[None].astype(stacked.dtype), start)


def _block(config: DenoiserConfig, run: LayerRun) -> Block:
    return Block(config, run.has_experts, parent=None)


def _table(config: DenoiserConfig, positions: Int[Array, "B S"]) -> Table:
    table = rotary_table(positions, config.rotary_dim or config.head_dim, config.rope_theta)
    if config.rotary_in_float32:
        return table
    return table[0].astype(config.dtype), table[1].astype(config.dtype)


def _embed(config: DenoiserConfig, params: Params, tokens: Array) -> Float[Array, "BS D"]:
    return look_up(params["embedding"], tokens.reshape(-1)).astype(config.dtype)


def _normed(config: DenoiserConfig, params: Params, x: Array) -> Array:
    return cast(Array, RMSNorm(config, parent=None).apply({"params": params["final_norm"]}, x))


def _apply(block: Block, variables: Params, *arguments: Any) -> tuple[Array, Any]:
    """The residual stream after a layer, and its keys and values if they are kept."""
    return cast(tuple[Array, Any], block.apply(variables, *arguments))
