"""Which row of a rollout sits in which slot of the compiled batch.

The denoiser runs on a fixed number of slots. With fewer slots than rows, a row that is done leaves
its slot to the next row that waits (continuous batching), so that rows which need many forwards do
not keep the others' slots busy with nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jax_unmask.runtime.mesh import by_rows

Tree = TypeVar("Tree")


@struct.dataclass
class Slots:
    """Assignment of N rows to S slots, in `groups` parts that share nothing.

    Part g has rows [g N / groups, (g + 1) N / groups) and as large a part of the slots. Rows are
    counted from the beginning of their part, so that moving them in and out of slots is a batched
    gather, which stays on its device where rows are spread over devices.

    Attributes:
        row: the row that sits in each slot, or sat there last.
        waiting: first row that has not had a slot.
        start: iteration of the loop at which each row got its slot.
        place: slot that each row got.
    """

    row: Int[Array, "G S"]
    waiting: Int[Array, " G"]
    start: Int[Array, "G N"]
    place: Int[Array, "G N"]

    @classmethod
    def first(cls, rows: int, slots: int, groups: int) -> Slots:
        """The first rows in the slots, in order; the others wait."""
        size, each = rows // groups, slots // groups
        first = cls(
            row=jnp.tile(jnp.arange(each, dtype=jnp.int32), (groups, 1)),
            waiting=jnp.full(groups, each, jnp.int32),
            start=jnp.zeros((groups, size), jnp.int32),
            place=jnp.tile(jnp.arange(size, dtype=jnp.int32), (groups, 1)),
        )
        return by_rows(first)

    @property
    def is_static(self) -> bool:
        """Every row has a slot of its own, that of its number."""
        return self.row.shape == self.start.shape

    def take(self, rows: Tree) -> Tree:
        """What the rows in the slots have of the arrays [N, ...]: arrays [S, ...]."""
        return rows if self.is_static else self._per_group(lambda x, at: x[at], rows)

    def put(self, rows: Tree, values: Tree) -> Tree:
        """The arrays [N, ...] with the values [S, ...] of the rows in the slots written to them."""
        if self.is_static:
            return values
        return self._per_group(
            lambda x, new, at: x.at[at].set(new, unique_indices=True), rows, values
        )

    def refill(self, done: Bool[Array, " S"], iteration: Int[Array, ""]) -> Slots:
        """Gives the slots of rows that are done to waiting rows, in order, for `iteration`.

        Where no row waits, the slot keeps the row that it had.
        """
        if self.is_static:
            return self
        done = done.reshape(self.row.shape)
        size = self.start.shape[1]
        row = self.waiting[:, None] + jnp.cumsum(done, axis=1, dtype=jnp.int32) - 1
        taken = done & (row < size)

        def note(x: Array, row: Array, value: Array) -> Array:
            return x.at[row].set(value, mode="drop")

        target = jnp.where(taken, row, size)  # Out of bounds, where the scatter drops it.
        slot = jnp.broadcast_to(jnp.arange(row.shape[1], dtype=jnp.int32), row.shape)
        return Slots(
            row=jnp.where(taken, row, self.row),
            waiting=self.waiting + jnp.sum(taken, axis=1, dtype=jnp.int32),
            start=jax.vmap(note)(self.start, target, jnp.full_like(row, iteration)),
            place=jax.vmap(note)(self.place, target, slot),
        )

    def by_row(self, steps: Tree, count: Int[Array, " N"], length: int) -> Tree:
        """What was written iteration by iteration, in the order of each row's own steps.

        Args:
            steps: arrays [I, S, ...] that hold what happened in each slot at each iteration.
            count: how many iterations each row sat in its slot.
            length: T, at least the largest count.

        Returns:
            Arrays [T, N, ...]; zeros from a row's count on.
        """
        if self.is_static:
            return steps
        step = jnp.arange(length)[:, None, None]
        valid = step < count.reshape(self.start.shape)
        at = jnp.where(valid, self.start + step, 0)

        def order(x: Array) -> Array:
            groups, rest = self.row.shape[0], x.shape[2:]
            x = x.reshape(x.shape[0], groups, -1, *rest)
            pick = jax.vmap(lambda x, at, place: x[at, place], in_axes=(1, 1, 0), out_axes=1)
            out = pick(x, at, self.place)
            out = jnp.where(valid.reshape(*valid.shape, *(1 for _ in rest)), out, 0)
            return out.astype(x.dtype).reshape(length, -1, *rest)

        return jax.tree.map(order, steps)

    def note(
        self, steps: Tree, step: Int[Array, " S"], is_noted: Bool[Array, " S"], values: Tree
    ) -> Tree:
        """The arrays [N, T, ...] with what the rows in the slots did at a step of their own.

        Args:
            steps: what each row did at each of its steps.
            step: step of the rows in the slots.
            is_noted: rows that did something.
            values: arrays [S, ...] that say what.
        """
        groups = self.row.shape[0]
        step, is_noted = step.reshape(groups, -1), is_noted.reshape(groups, -1)

        def write(x: Array, new: Array, row: Array, step: Array, is_noted: Array) -> Array:
            step = jnp.where(is_noted, step, x.shape[1])  # Out of bounds: the scatter drops it.
            return x.at[row, step].set(new, mode="drop")

        def apply(x: Array, new: Array) -> Array:
            x, new = (leaf.reshape(groups, -1, *leaf.shape[1:]) for leaf in (x, new))
            out = jax.vmap(write)(x, new, self.row, step, is_noted)
            return out.reshape(-1, *out.shape[2:])

        return jax.tree.map(apply, steps, values)

    def _per_group(self, function: Callable[..., Array], *trees: Tree) -> Tree:
        """Applies function(*leaves, row) to each group's part of the leaves."""
        return per_group(function, self.row, *trees)


@struct.dataclass
class Chosen:
    """A few of the slots, the same number in every group.

    Attributes:
        slot: their numbers within their group; None for all slots, in order.
    """

    slot: Int[Array, "G F"] | None

    @classmethod
    def first(cls, wanted: Bool[Array, " S"], count: int, slots: Slots) -> Chosen:
        """The first slots that are wanted, filled up with others to `count` in every group."""
        groups, each = slots.row.shape
        if count == each:
            return cls(slot=None)
        order = jnp.argsort(~wanted.reshape(groups, each), axis=1, stable=True)
        return cls(slot=order[:, :count].astype(jnp.int32))

    def of(self, slots: Slots) -> Slots:
        """The slots, as if there were no others. They may not be refilled."""
        if self.slot is None:
            return slots
        row = jnp.take_along_axis(slots.row, self.slot, axis=1)
        return dataclasses.replace(slots, row=row)

    def take(self, values: Tree) -> Tree:
        """What the chosen slots have of arrays [S, ...]: arrays [F, ...]."""
        if self.slot is None:
            return values
        return per_group(lambda x, at: x[at], self.slot, values)

    def put(self, values: Tree, new: Tree, is_put: Bool[Array, " F"]) -> Tree:
        """The arrays [S, ...] with those new values [F, ...] that are to be put written to them."""
        if self.slot is None:
            return jax.tree.map(lambda x, y: _select(is_put, y, x), values, new)
        # Slots that get nothing get what they have: no two of those chosen are the same.
        mixed = jax.tree.map(lambda x, y: _select(is_put, y, x), self.take(values), new)
        return per_group(
            lambda x, new, at: x.at[at].set(new, unique_indices=True), self.slot, values, mixed
        )


def per_group(function: Callable[..., Array], index: Int[Array, "G F"], *trees: Tree) -> Tree:
    """Applies function(*leaves, index) to each group's part of the leaves."""
    groups = index.shape[0]

    def apply(*leaves: Array) -> Array:
        split = by_rows([x.reshape(groups, -1, *x.shape[1:]) for x in leaves])
        out = by_rows(jax.vmap(function)(*split, index))
        return out.reshape(-1, *out.shape[2:])

    return jax.tree.map(apply, *trees)


def _select(rows: Bool[Array, " F"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1 for _ in new.shape[1:])), new, old)
