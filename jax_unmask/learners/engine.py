"""The engine of all learners: minibatches, gradients added up over chunks, optimiser steps.

Rollouts are recorded on a [T, B] grid of which a large part is padding: rows end early, and groups
of equal rewards carry no gradient. Packing the wanted pairs to the front and looping over chunks
with a trip count that depends on their number costs what they cost, with static shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sharding import keep
from jax_unmask.learners.state import Params
from jax_unmask.runtime.mesh import BATCH, active, active_over, constrain, spec

Tree = TypeVar("Tree")
Carry = TypeVar("Carry")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The devices that have one part of a batch each.

    Attributes:
        axes: axes of the mesh that the parts are spread over; none where there is one part.
    """

    axes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many parts there are."""
        return jax.lax.axis_size(self.axes) if self.axes else 1

    @property
    def index(self) -> Int[Array, ""] | int:
        """Which of them this is."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def sum(self, tree: Tree) -> Tree:
        """Sums over the parts."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def max(self, tree: Tree) -> Tree:
        """Largest values of all parts."""
        return jax.lax.pmax(tree, self.axes) if self.axes else tree

    def any(self, flags: Bool[Array, "*N"]) -> Bool[Array, ""]:
        """Whether any flag of any part is set."""
        return self.sum(jnp.any(flags).astype(jnp.int32)) > 0 if self.axes else jnp.any(flags)

    def joined(self, x: Array, axis: int) -> Array:
        """The whole array, of which each part has a piece along an axis."""
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True) if self.axes else x

    def own(self, x: Array, axis: int, size: int) -> Array:
        """This part's piece, of that size, of a whole array."""
        if not self.axes:
            return x
        first = self.index * size
        return jax.lax.dynamic_slice_in_dim(x, first, size, axis)


ALONE = Parts()
"""The only part there is."""


def over_rows(function: Callable[..., Tree], whole: Any, *, records: Any, rows: Any) -> Tree:
    """function(parts, whole, records, rows), on each device with its own rows.

    Args:
        function: must return the same on all devices; that is what `parts` is for.
        whole: arrays that every device has.
        records: arrays [T, B, ...].
        rows: arrays [B, ...].
    """
    batch = jax.tree.leaves(rows)[0].shape[0]
    if active_over(batch) is None:
        return function(ALONE, whole, records, rows)

    def of_part(whole: Any, records: Any, rows: Any) -> Tree:
        return function(Parts(BATCH), whole, records, rows)

    # Loops and branches differ from device to device, which is why types do not track it.
    specs = (PartitionSpec(), spec(None, "batch"), spec("batch"))
    split = jax.shard_map(of_part, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return split(whole, records, rows)


def over_copies(function: Callable[..., Tree], *whole: Any) -> Tree:
    """function(parts, *whole), on each copy of the model: a part of the data axis.

    Within a copy the compiler goes on to spread arrays over the other axes.

    Args:
        function: must return the same on all copies; that is what `parts` is for.
        whole: arrays that every copy has, such as its parameters; nothing that was computed outside
            may come in by another way.
    """
    mesh = active()
    if mesh is None or mesh.shape["data"] == 1:
        return function(ALONE, *whole)

    def of_copy(*whole: Any) -> Tree:
        return function(Parts(("data",)), *whole)

    split = jax.shard_map(
        of_copy,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        axis_names={"data"},
        check_vma=False,
    )
    return split(*whole)


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


@struct.dataclass
class Totals:
    """Float32 scalars: of two parts of a batch each is the sum, `ratio_max` the larger one.

    Attributes:
        ratio_max: largest ratio of the probabilities of new and old parameters.
    """

    ratio_max: Float[Array, ""]

    @classmethod
    def zero(cls) -> Self:
        """Nothing added yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in dataclasses.fields(cls)))

    def __add__(self, other: Self) -> Self:
        total = jax.tree.map(jnp.add, self, other)
        return dataclasses.replace(total, ratio_max=jnp.maximum(self.ratio_max, other.ratio_max))

    def over(self, parts: Parts) -> Self:
        """What all parts of a batch add up to that is spread over devices."""
        return dataclasses.replace(parts.sum(self), ratio_max=parts.max(self.ratio_max))


@struct.dataclass
class Sums(Totals):
    """What passes over states add up; a unit is what has a ratio: a token or a response.

    Attributes:
        loss: loss of each optimiser step.
        kl: estimates of the KL divergence to the old parameters, over units.
        reference_kl: the same to the reference parameters.
        clipped: units whose ratio left the clip range.
        units: how many units there were.
        surprise: -log p of the trained tokens.
        tokens: how many of these there were.
    """

    loss: Float[Array, ""]
    kl: Float[Array, ""]
    reference_kl: Float[Array, ""]
    clipped: Float[Array, ""]
    units: Float[Array, ""]
    surprise: Float[Array, ""]
    tokens: Float[Array, ""]


def split(
    wanted: Bool[Array, "N B"], key: Array, parts: int, whole_responses: bool
) -> Int[Array, "N B"]:
    """Deals the wanted states out at random to parts of equal size, one per optimiser step.

    Without that, the states of a response and the responses of a prompt would lie together, and
    the gradients of one optimiser step would be alike.

    Args:
        wanted: which states there are.
        key: typed PRNG key.
        parts: how many parts (static).
        whole_responses: keep all states of a response in one part.

    Returns:
        The part of each state, in 0 .. parts - 1 where it is wanted.
    """
    if parts == 1:
        return jnp.zeros(wanted.shape, jnp.int32)
    units = wanted.any(axis=0) if whole_responses else wanted.reshape(-1)
    score = jnp.where(units, jax.random.uniform(key, units.shape), jnp.inf)
    place = jnp.argsort(jnp.argsort(score))
    part = place * parts // jnp.maximum(jnp.sum(units), 1)
    return jnp.broadcast_to(part, wanted.shape) if whole_responses else part.reshape(wanted.shape)


def over_chunks(
    parts: Parts,
    body: Callable[[Carry, Chunk], Carry],
    start: Carry,
    pairs: Pairs,
    chunk_size: int,
    rows: int,
) -> Carry:
    """Applies `body` to one chunk of (state, response) pairs after the other.

    Args:
        parts: the parts that chunks are cut into; what they add up to is their caller's.
        body: carry and chunk to the next carry.
        start: the first carry.
        pairs: the pairs.
        chunk_size: pairs per chunk, of all parts together (static).
        rows: number of responses B (static).
    """
    size = -(-min(chunk_size, pairs.order.shape[0]) // parts.count)

    def step(carry: tuple[Array, Carry]) -> tuple[Array, Carry]:
        begin, inner = carry
        # All parts take the same number of chunks, the last of which may be empty for some.
        at = take_chunk(pairs, begin + parts.index * size, pairs.count, size, rows)
        return begin + parts.count * size, body(inner, at)

    first = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0] < pairs.count, step, (first, start))[1]


def accumulate(
    parts: Parts,
    loss: Callable[[Params, Chunk], tuple[Array, Sums]],
    params: Params,
    pairs: Pairs,
    chunk_size: int,
    rows: int,
) -> tuple[Params, Sums]:
    """Gradient of the sum of the chunks' losses, added up in float32, and their sums.

    Args:
        parts: the parts that chunks are cut into.
        loss: parameters and chunk to the chunk's loss and sums.
        params: where to differentiate.
        pairs: the pairs to go over.
        chunk_size: pairs whose activations are alive at once (static).
        rows: number of responses B (static).
    """
    gradient = jax.grad(loss, has_aux=True)

    def body(carry: tuple[Params, Sums], at: Chunk) -> tuple[Params, Sums]:
        grads, sums = carry
        new_grads, new_sums = gradient(params, at)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, new_grads), sums + new_sums

    zeros = keep(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params))
    grads, sums = over_chunks(parts, body, (zeros, Sums.zero()), pairs, chunk_size, rows)
    # Once, behind the loop: what the parts add up on the way is their own.
    grads, sums = parts.sum(grads), sums.over(parts)
    return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params), sums


def gather_slots(
    parts: Parts,
    scores: Callable[[Chunk], tuple[Array, Array, Array]],
    shape: tuple[int, int, int],
    pairs: Pairs,
    chunk_size: int,
) -> Float[Array, "slots B L"]:
    """Collects per-token numbers of all states; states of one slot concern different tokens.

    Args:
        parts: the parts that chunks are cut into.
        scores: chunk to its numbers [C, L] (0 where they do not count), slots [C] and tokens that
            count [C, L].
        shape: (slots, B, L).
        pairs: the pairs to go over.
        chunk_size: pairs per chunk (static).
    """

    def body(out: Array, at: Chunk) -> Array:
        values, slot, counts = scores(at)
        # Whole on every device: others may have the tokens in their next chunk.
        values = constrain(jnp.where(counts & at.valid[:, None], values, 0.0))
        return out.at[slot, at.row].add(values)

    zeros = jnp.zeros(shape, jnp.float32)
    return parts.sum(over_chunks(parts, body, zeros, pairs, chunk_size, shape[1]))


def optimise(
    gradient: Callable[[Params, Array, Pairs], tuple[Params, Sums]],
    parts: Callable[[Array], list[Pairs]],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    passes: int,
) -> tuple[Params, Any, Sums, Array, Array]:
    """All optimiser steps of one batch.

    Args:
        gradient: parameters, index of the pass and pairs to the gradient and sums of one step.
        parts: index of the pass to the pairs of each of its steps.
        optimizer: an optax transformation.
        params: parameters to start from.
        opt_state: state of the optimiser.
        passes: passes over the batch (static).

    Returns:
        New parameters and state of the optimiser, the sums, the sum of the gradients' norms, and
        the number of steps taken. Parts without any pair take none.
    """

    def one_pass(carry: Any, index: Array) -> tuple[Any, None]:
        pairs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts(index))

        def step(carry: Any, pairs: Pairs) -> tuple[Any, None]:
            def apply(carry: Any) -> Any:
                params, opt_state, sums, norm, steps = carry
                grads, new = gradient(params, index, pairs)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                params = optax.apply_updates(params, updates)
                return params, opt_state, sums + new, norm + optax.tree.norm(grads), steps + 1.0

            return jax.lax.cond(pairs.count > 0, apply, lambda c: c, carry), None

        return jax.lax.scan(step, carry, pairs)

    zero = jnp.zeros((), jnp.float32)
    start = (params, opt_state, Sums.zero(), zero, zero)
    return jax.lax.scan(one_pass, start, jnp.arange(passes))[0]
