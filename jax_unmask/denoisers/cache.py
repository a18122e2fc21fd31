"""A cache of keys and values, as `transformer.forward` fills and reads it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.runtime.mesh import constrain

Put = Callable[[Array, Array | int, Array], Array]
"""Writes a layer's keys or values [F, G, S, d] into the rows that they belong to of the first S
positions of [N, B, G, K, d]; gets that array, the index of the layer and the new rows."""


@struct.dataclass
class KeyValueCache:
    """Rotated keys, and values, of K positions in B rows.

    One array per run of equal layers (N of them; absent where a run is one layer by nature), head
    by head, which is how attention reads them.
    """

    keys: tuple[Float[Array, "*N B G K d"], ...]
    values: tuple[Float[Array, "*N B G K d"], ...]


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


@struct.dataclass
class Written:
    """Keys and values of W positions in B rows, and where they go.

    Attributes:
        new: keys and values [N, B, G, W, d].
        at: their positions in the cache.
        is_written: those that are written; the others are dropped.
    """

    new: KeyValueCache
    at: Int[Array, "B W"]
    is_written: Bool[Array, "B W"]


def write_positions(cache: KeyValueCache, written: Written) -> KeyValueCache:
    """The cache with new keys and values at some positions of each row."""

    def place(old: Array, new: Array, at: Array) -> Array:
        return old.at[at].set(new.astype(old.dtype), mode="drop")

    # One by one along all axes but the last: a scatter of longer windows would want the cache in
    # another layout on a TPU, so that every step copies it whole.
    for _ in range(3):
        place = jax.vmap(place)

    def place_all(old: Array, new: Array) -> Array:
        at = jnp.where(written.is_written, written.at, old.shape[-2])  # Out of bounds.
        return place(old, new, jnp.broadcast_to(at[None, :, None], new.shape[:-1]))

    return jax.tree.map(place_all, cache, written.new)
