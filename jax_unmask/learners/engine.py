"""The engine of all learners: minibatches, gradients added up over chunks, optimiser steps.

A learner trains on cells of a grid [T, B]: for an unmasking policy the steps of B rollouts, for a
denoiser the masked states of B responses. Most cells count for nothing, because rows end early and
groups of equal rewards carry no gradient. So the cells that count are packed to the front, and a
loop whose length depends on their number walks over them in chunks of static size. Memory follows
the size of a chunk, time the number of cells that count, and one compiled program serves all
batches.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sharding import keep
from jax_unmask.runtime.mesh import BATCH, active, active_over, spec
from jax_unmask.settings import Settings, setting

Tree = TypeVar("Tree")
Carry = TypeVar("Carry")
Metrics = dict[str, Float[Array, ""]]
Params = Any


@struct.dataclass
class TrainState:
    """Parameters and everything needed to continue training exactly; one checkpoint item.

    Attributes:
        step: learner steps taken, also those that changed nothing. A step's randomness is
            `fold_in(key, step)`, so it does not depend on how often training was resumed.
        params: parameters being trained.
        opt_state: optimiser state.
        key: typed PRNG key of the run; never split, only folded.
        ema: exponential moving average of the parameters, or None.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    key: Array
    ema: Params | None = None

    @classmethod
    def first(cls, params: Params, opt_state: Any, key: Array, ema: Params | None = None) -> Self:
        """The state before the first step."""
        # Strongly typed: a weak type would compile the first step twice.
        return cls(jnp.zeros((), jnp.int32), params, opt_state, key, ema)

    def after(self, params: Params, opt_state: Any, ema: Params | None = None) -> Self:
        """The state after one more step."""
        return dataclasses.replace(
            self, step=self.step + 1, params=params, opt_state=opt_state, ema=ema
        )

    def step_key(self) -> Array:
        """The key of the coming step."""
        return jax.random.fold_in(self.key, self.step)


@dataclasses.dataclass(frozen=True)
class UpdateSettings(Settings):
    """The optimiser steps of reinforcement on a batch, see `optimise`."""

    clip: float = setting(
        0.2, "Clip range of the ratio (0.5 in arXiv 2512.09106, 0.2 in 2509.06949).", gt=0, lt=1
    )
    passes: int = setting(1, "Passes over each batch.", ge=1)
    minibatches: int = setting(
        1,
        "Optimiser steps per pass: each pass splits what it trains on at random into so many "
        "disjoint minibatches, whose losses estimate the whole without bias.",
        ge=1,
    )

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps per batch; what a learning-rate schedule must count."""
        return self.passes * self.minibatches


@dataclasses.dataclass(frozen=True)
class Shards:
    """The devices that share the work of an update, inside a `jax.shard_map` over `axes`.

    Attributes:
        axes: axes of the mesh; none where nothing is shared.
        by_rows: each device has rows of its own. Otherwise all have all rows, and each takes its
            share of the cells.
    """

    axes: tuple[str, ...] = ()
    by_rows: bool = True

    def sum(self, tree: Tree) -> Tree:
        """Sum over the shards."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def max(self, tree: Tree) -> Tree:
        """Largest values of all shards."""
        return jax.lax.pmax(tree, self.axes) if self.axes else tree

    def any(self, flags: Bool[Array, "*N"]) -> Bool[Array, ""]:
        """Whether any flag of any shard is set."""
        return self.sum(jnp.any(flags).astype(jnp.int32)) > 0 if self.axes else jnp.any(flags)


ALONE = Shards()
"""One device, or devices among which the compiler shares the work."""


def over_rows(function: Callable[..., Tree], whole: Any, *, records: Any, rows: Any) -> Tree:
    """function(shards, whole, records, rows), on each device with its own rows.

    Args:
        function: must return the same on all devices.
        whole: arrays that every device has.
        records: arrays [T, B, ...].
        rows: arrays [B, ...].
    """
    batch = math.gcd(*(leaf.shape[0] for leaf in jax.tree.leaves(rows)))
    if active_over(batch) is None:
        return function(ALONE, whole, records, rows)

    def of_shard(whole: Any, records: Any, rows: Any) -> Tree:
        return function(Shards(BATCH), whole, records, rows)

    # Loops and branches differ between devices, which is why types do not track it.
    specs = (PartitionSpec(), spec(None, "batch"), spec("batch"))
    split = jax.shard_map(of_shard, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return split(whole, records, rows)


def over_copies(function: Callable[..., Tree], *whole: Any) -> Tree:
    """function(shards, *whole), on each copy of the model: a shard of the data axis.

    Within a copy the compiler spreads arrays over the other axes.

    Args:
        function: must return the same on all copies.
        whole: arrays that every copy has, such as its parameters; nothing computed outside may come
            in by another way.
    """
    mesh = active()
    if mesh is None or mesh.shape["data"] == 1:
        return function(ALONE, *whole)

    def of_copy(*whole: Any) -> Tree:
        return function(Shards(("data",), by_rows=False), *whole)

    split = jax.shard_map(
        of_copy,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        # Kernels of TPUs refuse axes that are left to the compiler, those of one device included.
        axis_names=set(mesh.shape) if mesh.shape["data"] == mesh.size else {"data"},
        check_vma=False,
    )
    return split(*whole)


@struct.dataclass
class Minibatch:
    """The cells of one optimiser step, as places in a packed order; see `split`."""

    start: Int[Array, "*M"]  # First place of this device's cells,
    stop: Int[Array, "*M"]  # and the end of them.
    end: Int[Array, "*M"]  # End of its walk: all devices run the same number of iterations.
    count: Int[Array, "*M"]  # Cells of all devices.


@struct.dataclass
class Minibatches:
    """Cells of a grid, packed minibatch by minibatch."""

    order: Int[Array, " N"]  # Indices into this device's flattened grid; what counts comes first.
    each: Minibatch  # All M, stacked.
    total: Int[Array, ""]  # Cells of all minibatches and devices.
    width: int = struct.field(pytree_node=False)  # B of this device's grid.

    @property
    def first(self) -> Minibatch:
        """The first minibatch: all cells, if there is one."""
        return jax.tree.map(lambda leaf: leaf[0], self.each)


@struct.dataclass
class Chunk:
    """Cells (t, b) of a grid, as indices into arrays [T, B, ...]."""

    step: Int[Array, " C"]
    row: Int[Array, " C"]
    valid: Bool[Array, " C"]  # The cell counts; the others repeat one that does.


def split(
    wanted: Bool[Array, "T B"],
    number: int = 1,
    key: Array | None = None,
    *,
    whole_rows: bool = False,
    shards: Shards = ALONE,
) -> Minibatches:
    """Splits the wanted cells at random into minibatches of equal size.

    Neighbouring cells are alike (the states of a response, the responses of a prompt): without the
    random order, the gradient of one optimiser step would be one of a few prompts.

    Args:
        wanted: the cells of this device's grid that count.
        number: M, number of minibatches (static).
        key: typed PRNG key of the random order; not needed for one minibatch.
        whole_rows: keep all cells of a row together; minibatches then have equal numbers of rows.
            Only for devices that have all rows.
        shards: the devices. The minibatches do not depend on their number.

    >>> cells = split(jnp.asarray([[True, False], [True, True]]))
    >>> cells.order[: int(cells.total)].tolist()
    [0, 2, 3]
    """
    width, edges = wanted.shape[1], jnp.arange(number + 1)
    # 1. The minibatch of each cell, in 0 .. M - 1; M where it does not count.
    place = jnp.where(wanted, 0, number)
    if number > 1:
        assert key is not None
        every = wanted
        if shards.axes and shards.by_rows:
            every = jax.lax.all_gather(wanted, shards.axes, axis=1, tiled=True)
        units = every.any(axis=0, keepdims=True) if whole_rows else every
        flat = units.reshape(-1)
        # The random rank of each unit among those that count; the others come after them.
        order = jnp.argsort(jnp.where(flat, jax.random.uniform(key, flat.shape), jnp.inf))
        rank = jnp.zeros(flat.shape, jnp.int32).at[order].set(jnp.arange(flat.size))
        whole = (rank * number // jnp.maximum(jnp.sum(flat), 1)).reshape(units.shape)
        if shards.axes and shards.by_rows:
            first = jax.lax.axis_index(shards.axes) * width
            whole = jax.lax.dynamic_slice_in_dim(whole, first, width, axis=1)
        place = jnp.where(wanted, whole, number)
    # 2. The cells of a minibatch together, in the order of the grid.
    place = place.reshape(-1)
    order = jnp.argsort(place, stable=True)
    edges = jnp.searchsorted(place[order], edges).astype(jnp.int32)
    start, stop = edges[:-1], edges[1:]
    count, end = stop - start, stop
    # 3. Their shares, where every device has all cells.
    if shards.axes and not shards.by_rows:
        share = -(-count // jax.lax.axis_size(shards.axes))
        start += jax.lax.axis_index(shards.axes) * share
        end = start + share
        stop = jnp.minimum(end, stop)
    elif shards.axes:
        count = shards.sum(count)
    each = Minibatch(start=start, stop=stop, end=end, count=count)
    return Minibatches(order.astype(jnp.int32), each, jnp.sum(count), width)


def over_chunks(
    body: Callable[[Carry, Chunk], Carry],
    start: Carry,
    cells: Minibatches,
    minibatch: Minibatch,
    chunk_size: int,
    shards: Shards = ALONE,
) -> Carry:
    """Applies `body` to one chunk of this device's cells after the other.

    Args:
        body: carry and chunk to the next carry; never called without a cell of the minibatch.
        start: the first carry.
        cells: packed cells.
        minibatch: which of them.
        chunk_size: cells per chunk (static): of each device that has its own rows, of all devices
            together where they share all cells; 0 for all.
        shards: the devices.
    """
    count = cells.order.shape[0]
    size = min(chunk_size or count, count)
    if not shards.by_rows:
        size = -(-size // jax.lax.axis_size(shards.axes))
    # Places from `stop` on repeat the last cell: a real cell with weight zero cannot bring in the
    # NaN that an empty one might. Without a cell on this device it is another device's.
    last = minibatch.stop - 1

    def step(carry: tuple[Array, Carry]) -> tuple[Array, Carry]:
        begin, inner = carry
        place = begin + jnp.arange(size)
        cell = cells.order[jnp.minimum(place, last)]
        valid = place < minibatch.stop
        return begin + size, body(inner, Chunk(cell // cells.width, cell % cells.width, valid))

    return jax.lax.while_loop(lambda c: c[0] < minibatch.end, step, (minibatch.start, start))[1]


@struct.dataclass
class Sums:
    """Numbers that a walk adds up; float32 scalars.

    A unit is what has a ratio of probabilities (new to old): a step of an unmasking policy, a
    token, or a response.
    """

    loss: Float[Array, ""]  # Of each optimiser step.
    units: Float[Array, ""]
    clipped: Float[Array, ""]  # Units whose ratio left the clip range.
    kl: Float[Array, ""]  # Estimates of the KL divergence to the old parameters,
    kl_units: Float[Array, ""]  # and the units that they are of.
    reference_kl: Float[Array, ""]  # The same to reference parameters, of all units.
    surprise: Float[Array, ""]  # -log p of the decisions:
    decisions: Float[Array, ""]  # legal positions of a policy, trained tokens of a denoiser.
    ratio_max: Float[Array, ""]

    @classmethod
    def of(cls, **values: Array) -> Self:
        """The given sums, and zeros elsewhere; counts of flags become floats."""
        zeros = {field.name: jnp.zeros(()) for field in dataclasses.fields(cls)}
        return cls(**{n: jnp.asarray(v, jnp.float32) for n, v in (zeros | values).items()})

    def __add__(self, other: Self) -> Self:
        total = jax.tree.map(jnp.add, self, other)
        return dataclasses.replace(total, ratio_max=jnp.maximum(self.ratio_max, other.ratio_max))

    def over(self, shards: Shards) -> Self:
        """The sums of all devices."""
        return dataclasses.replace(shards.sum(self), ratio_max=shards.max(self.ratio_max))

    def metrics(self, steps: Float[Array, ""] | float = 1.0) -> Metrics:
        """Means over units and decisions, and the mean `loss` of so many optimiser steps."""
        return {
            "loss": self.loss / jnp.maximum(steps, 1.0),
            "clip_fraction": self.clipped / jnp.maximum(self.units, 1.0),
            "kl": self.kl / jnp.maximum(self.kl_units, 1.0),
            "reference_kl": self.reference_kl / jnp.maximum(self.units, 1.0),
            "surprise": self.surprise / jnp.maximum(self.decisions, 1.0),
            "ratio_max": self.ratio_max,
        }


def accumulate(
    loss: Callable[[Params, Chunk], tuple[Array, Sums]],
    params: Params,
    cells: Minibatches,
    minibatch: Minibatch,
    chunk_size: int,
    shards: Shards = ALONE,
) -> tuple[Params, Sums]:
    """The gradient of the sum of the chunks' losses, added up in float32, and their sums.

    Args:
        loss: parameters and chunk to the chunk's loss and sums.
        params: where to differentiate.
        cells: packed cells.
        minibatch: which of them.
        chunk_size: see `over_chunks`.
        shards: the devices; all get the gradient of all cells.
    """
    gradient = jax.grad(loss, has_aux=True)

    def body(carry: tuple[Params, Sums], at: Chunk) -> tuple[Params, Sums]:
        grads, sums = carry
        new_grads, new_sums = gradient(params, at)
        grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, new_grads)
        return grads, sums + jax.lax.stop_gradient(new_sums)

    zeros = keep(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params))
    start = (zeros, Sums.of())
    grads, sums = over_chunks(body, start, cells, minibatch, chunk_size, shards)
    # Once, after the loop: within it, every device adds up the gradients of its cells.
    grads, sums = shards.sum(grads), sums.over(shards)
    return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params), sums


def descend(
    optimizer: optax.GradientTransformation, params: Params, opt_state: Any, grads: Params
) -> tuple[Params, Any, Float[Array, ""]]:
    """One optimiser step: new parameters and state, and the norm of the gradient."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, optax.tree.norm(grads)


@struct.dataclass
class Optimised:
    """The outcome of all optimiser steps of a batch."""

    params: Params
    opt_state: Any
    sums: Sums  # Of all steps.
    grad_norm: Float[Array, ""]  # Norms before clipping, added up.
    steps: Float[Array, ""]  # Those taken: minibatches without a cell take none.

    def metrics(self) -> Metrics:
        """`Sums.metrics`, and the mean norm of the gradient."""
        norm = self.grad_norm / jnp.maximum(self.steps, 1.0)
        return self.sums.metrics(self.steps) | {"grad_norm": norm}


def optimise(
    gradient: Callable[[Params, Array, Any, Any], tuple[Params, Sums]],
    minibatches: Callable[[Array], Any],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    passes: int,
) -> Optimised:
    """All optimiser steps of one batch: a step per minibatch, several passes over all of them.

    Args:
        gradient: parameters, index of the pass, cells and minibatch to the gradient and sums of an
            optimiser step; see `accumulate`.
        minibatches: index of the pass to its `Minibatches`, or several; then a step has a
            `Minibatch` of each.
        optimizer: an optax transformation.
        params: parameters to start from.
        opt_state: state of the optimiser.
        passes: how many (static).
    """

    def one_pass(carry: Optimised, index: Array) -> tuple[Optimised, None]:
        cells = minibatches(index)

        def step(carry: Optimised, minibatch: Any) -> tuple[Optimised, None]:
            def apply(now: Optimised) -> Optimised:
                grads, sums = gradient(now.params, index, cells, minibatch)
                params, opt_state, norm = descend(optimizer, now.params, now.opt_state, grads)
                sums, norm = now.sums + sums, now.grad_norm + norm
                return Optimised(params, opt_state, sums, norm, now.steps + 1.0)

            every = jax.tree.leaves(minibatch, is_leaf=lambda x: isinstance(x, Minibatch))
            count = sum(each.count for each in every)
            return jax.lax.cond(count > 0, apply, lambda now: now, carry), None

        packed = lambda x: isinstance(x, Minibatches)
        return jax.lax.scan(step, carry, jax.tree.map(lambda x: x.each, cells, is_leaf=packed))

    zero = jnp.zeros((), jnp.float32)
    start = Optimised(params, opt_state, Sums.of(), zero, zero)
    return jax.lax.scan(one_pass, start, jnp.arange(passes))[0]
