"""Walking over the (step, row) pairs of a rollout that matter, in chunks of static size.

Rollouts are recorded on a [T, B] grid of which a large part is padding: rows end early, and groups
of equal rewards carry no gradient. Packing the wanted pairs to the front and looping over chunks
with a trip count that depends on their number costs what they cost, with static shapes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jax_unmask.learners.parts import Parts


@struct.dataclass
class Pairs:
    """The wanted (step, row) pairs, packed to the front.

    Attributes:
        order: indices into the flattened [T * B] grid; the first `count` are the wanted pairs.
        count: how many there are.
    """

    order: Int[Array, " N"]
    count: Int[Array, ""]


@struct.dataclass
class Chunk:
    """Some pairs, as indices into [T, B, ...] arrays.

    Attributes:
        step: index t of each pair.
        row: index b of each pair.
        valid: the pair counts; the others repeat a valid one.
    """

    step: Int[Array, " C"]
    row: Int[Array, " C"]
    valid: Bool[Array, " C"]


def pack(wanted: Bool[Array, "T B"], key: Array | None = None) -> Pairs:
    """Moves the wanted pairs to the front.

    Args:
        wanted: which pairs.
        key: typed PRNG key of a random order; None keeps the order of the grid.
    """
    unwanted = ~wanted.reshape(-1)
    if key is None:
        order = jnp.argsort(unwanted, stable=True)
    else:
        order = jnp.lexsort((jax.random.uniform(key, unwanted.shape), unwanted))
    return Pairs(order=order.astype(jnp.int32), count=jnp.sum(wanted, dtype=jnp.int32))


@struct.dataclass
class Hand:
    """The pairs of one optimiser step, of all that were dealt out; see `deal`.

    Attributes:
        bounds: first of its places among the packed pairs (of this part), and the end of them.
        count: how many pairs it has, in all parts.
    """

    bounds: Int[Array, "*H 2"]
    count: Int[Array, "*H"]


def deal(
    wanted: Bool[Array, "T B"], hands: int, key: Array | None, parts: Parts
) -> tuple[Pairs, Hand]:
    """Deals the wanted pairs out to hands of equal size.

    Args:
        wanted: which pairs of this part of the batch.
        hands: number of hands (static).
        key: typed PRNG key of a random order, the same for any number of parts; None keeps that of
            the grid.
        parts: the parts of the batch.

    Returns:
        The pairs of this part, packed, those of a hand together; and the hands, stacked.
    """
    rows = wanted.shape[1]
    edge = jnp.arange(hands + 1)
    if not parts.axes or key is None:
        pairs = pack(wanted, key)
        edges = (edge * pairs.count) // hands
        count = parts.sum(edges[1:] - edges[:-1])
        return pairs, Hand(jnp.stack([edges[:-1], edges[1:]], axis=1), count)
    every = parts.joined(wanted, axis=1)
    whole = pack(every, key)
    edges = (edge * whole.count) // hands
    rank = jnp.zeros_like(whole.order).at[whole.order].set(jnp.arange(every.size, dtype=jnp.int32))
    # Unwanted pairs come behind all wanted ones, in this part as in the whole.
    rank = parts.own(rank.reshape(every.shape), 1, rows).reshape(-1)
    order = jnp.argsort(rank).astype(jnp.int32)
    own = jnp.searchsorted(rank[order], edges).astype(jnp.int32)
    pairs = Pairs(order=order, count=jnp.sum(wanted, dtype=jnp.int32))
    return pairs, Hand(jnp.stack([own[:-1], own[1:]], axis=1), edges[1:] - edges[:-1])


def take_chunk(
    pairs: Pairs, begin: Int[Array, ""], stop: Int[Array, ""], size: int, rows: int
) -> Chunk:
    """The pairs at places [begin, begin + size), of which those before `stop` are valid.

    Places from `stop` on repeat the last valid pair: a real pair with weight zero cannot bring in
    the NaN that an empty observation might.

    Args:
        pairs: packed pairs.
        begin: first place, below `stop`.
        stop: end of the valid places, at most `pairs.count`.
        size: places per chunk (static).
        rows: B, the width of the grid (static).
    """
    place = begin + jnp.arange(size)
    pair = pairs.order[jnp.minimum(place, stop - 1)]
    return Chunk(step=pair // rows, row=pair % rows, valid=place < stop)
