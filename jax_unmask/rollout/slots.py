"""Assignment of a rollout's rows to the slots of the running batch.

The denoiser runs on a fixed number of slots. With fewer slots than rows, a row that is done leaves
its slot to the next waiting row (continuous batching), so that rows which need many forwards do
not hold up the others.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.rollout.trajectory import Records
from jax_unmask.runtime.mesh import active_over, batch_shards, by_rows, constrain

Tree = TypeVar("Tree")


class SlotStep(NamedTuple):
    """Actions and results of the rows in the slots in one iteration of the loop.

    Attributes:
        records: leaves [S, ...]; those of rows that were not active mean nothing.
        row: the row in each slot, counted within its group.
        step: the row's own step.
    """

    records: Records
    row: Int[Array, "G SG"]
    step: Int[Array, " S"]


@struct.dataclass
class Slots:
    """The assignment of B rows to S slots, in G groups that share nothing.

    Group g has rows [g B / G, (g + 1) B / G) and as large a share of the slots. Rows are counted
    within their group: moving them in and out of slots is then a batched gather, which stays on its
    device where the groups are spread over devices.

    Attributes:
        row: the row in each slot; once its group has no waiting row, the last that was there.
        waiting: the first row that has not had a slot.
        size: rows of a group, B / G (static).
    """

    row: Int[Array, "G SG"]
    waiting: Int[Array, " G"]
    size: int = struct.field(pytree_node=False)

    @classmethod
    def first(cls, rows: int, slots: int, groups: int) -> "Slots":
        """The first rows in the slots, in order; the others wait."""
        each = slots // groups
        row = jnp.tile(jnp.arange(each, dtype=jnp.int32), (groups, 1))
        waiting = jnp.full(groups, each, jnp.int32)
        return by_rows(cls(row=row, waiting=waiting, size=rows // groups))

    @property
    def is_static(self) -> bool:
        """Whether each row has its own slot, that of its number."""
        return self.row.shape[1] == self.size

    def take(self, rows: Tree) -> Tree:
        """Arrays [S, ...] of the rows in the slots, from arrays [B, ...] of all rows."""
        return rows if self.is_static else _per_group(lambda x, at: x[at], self.row, rows)

    def put(self, rows: Tree, values: Tree) -> Tree:
        """Arrays [B, ...] in which the rows in the slots have new values [S, ...]."""
        return values if self.is_static else _per_group(_replace, self.row, rows, values)

    def refill(self, is_done: Bool[Array, " B"]) -> "Slots":
        """Gives the slots of rows that are done to waiting rows, in order."""
        if self.is_static:
            return self
        done = self.take(is_done).reshape(self.row.shape)
        row = self.waiting[:, None] + jnp.cumsum(done, axis=1, dtype=jnp.int32) - 1
        taken = done & (row < self.size)
        return dataclasses.replace(
            self,
            row=jnp.where(taken, row, self.row),
            waiting=self.waiting + jnp.sum(taken, axis=1, dtype=jnp.int32),
        )

    def choose(self, wanted: Bool[Array, " S"], count: int) -> "SlotSubset":
        """The first `count` wanted slots of every group, filled up with others."""
        groups, each = self.row.shape
        if count == each:
            return SlotSubset(slot=None)
        order = jnp.argsort(~wanted.reshape(groups, each), axis=1, stable=True)
        return SlotSubset(slot=order[:, :count].astype(jnp.int32))

    def record(self, records: Tree, done: SlotStep) -> Tree:
        """Writes the records of slots to the steps of their rows.

        Args:
            records: of every row's own steps: leaves [T, B, F], or [T, B].
            done: n iterations, leaves [n, S, ...], where the product of ... is F.
        """
        groups, row = self.row.shape[0], done.row
        if self.is_static:
            # Each row has its own slot, so that the rows of a device can be a group.
            mesh = active_over(self.row.size)
            groups = 1 if mesh is None else batch_shards(mesh)
            each = self.row.size // groups
            row = jnp.broadcast_to(jnp.arange(each), (row.shape[0], groups, each))

        def by_group(x: Array) -> Array:
            return x.reshape(x.shape[0], groups, -1, *x.shape[2:])

        # Idle rows get a step out of bounds, which the scatter drops.
        most = jax.tree.leaves(records)[0].shape[0]
        step = by_group(jnp.where(done.records.active, done.step, most))

        def write(old: Array, new: Array) -> Array:
            place = jax.vmap(
                lambda old, step, row, new: old.at[step, row].set(new, mode="drop"),
                in_axes=1,
                out_axes=1,
            )
            new = by_group(new.reshape(*new.shape[:2], *old.shape[2:]))
            return place(by_group(old), step, row, new).reshape(old.shape)

        return jax.tree.map(write, records, done.records)


@struct.dataclass
class SlotSubset:
    """F of the S slots, the same number in every group.

    Attributes:
        slot: their numbers within their group; None for all slots, in order.
    """

    slot: Int[Array, "G FG"] | None

    def of(self, slots: Slots) -> Slots:
        """The slots, as if there were no others. They cannot be refilled."""
        if self.slot is None:
            return slots
        return dataclasses.replace(slots, row=jnp.take_along_axis(slots.row, self.slot, axis=1))

    def take(self, values: Tree) -> Tree:
        """Arrays [F, ...] of the subset, from arrays [S, ...] of all slots."""
        return values if self.slot is None else _per_group(lambda x, at: x[at], self.slot, values)

    def spread(self, values: Tree, slots: int) -> Tree:
        """Arrays [S, ...] with the values [F, ...] of the subset, and 0 in other slots."""
        if self.slot is None:
            return values
        nothing = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype), values)
        return _per_group(_replace, self.slot, nothing, values)

    def put_in_layer(
        self,
        stacked: Float[Array, "N S G K d"],
        layer: Array | int,
        new: Float[Array, "F G W d"],
        is_put: Bool[Array, " F"],
    ) -> Float[Array, "N S G K d"]:
        """`put` for the first W positions of one layer; nothing else is read or written."""
        count, rows = new.shape[2], stacked.shape[1]
        if self.slot is None:
            old = jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)[:, :, :count]
            new = self.put(old, new, is_put)
            start = (layer, *(0 for _ in new.shape))
            return jax.lax.dynamic_update_slice(stacked, new[None], start)
        groups = self.slot.shape[0]
        # Rows that are not put get a slot out of bounds, which the scatter drops.
        at = jnp.where(is_put.reshape(self.slot.shape), self.slot, rows // groups)

        def write(stacked: Array, at: Array, new: Array) -> Array:
            place = stacked.at[layer, at, :, :count]
            return place.set(new, mode="drop", unique_indices=True)

        old = stacked.reshape(-1, groups, rows // groups, *stacked.shape[2:])
        # Heads too: a dimension without a name would be gathered, for every layer.
        old = constrain(old, None, "batch", None, "heads")
        new = constrain(new.reshape(groups, -1, *new.shape[1:]), "batch", None, "heads")
        out = jax.vmap(write, in_axes=(1, 0, 0), out_axes=1)(old, by_rows(at), new)
        return constrain(out, None, "batch", None, "heads").reshape(stacked.shape)

    def copy_from(
        self,
        source: Int[Array, "G FG"],
        stacked: Float[Array, "N S H K d"],
        count: int,
        is_put: Bool[Array, " F"],
    ) -> Float[Array, "N S H K d"]:
        """The first `count` positions of other slots, in all layers, put into those of `is_put`."""
        assert self.slot is not None
        groups, rows = self.slot.shape[0], stacked.shape[1]
        at = jnp.where(is_put.reshape(self.slot.shape), self.slot, rows // groups)

        def copy(stacked: Array, source: Array, at: Array) -> Array:
            new = stacked[:, source, :, :count]
            return stacked.at[:, at, :, :count].set(new, mode="drop", unique_indices=True)

        split = stacked.reshape(-1, groups, rows // groups, *stacked.shape[2:])
        split = constrain(split, None, "batch", None, "heads")
        copied = jax.vmap(copy, in_axes=(1, 0, 0), out_axes=1)(split, by_rows(source), by_rows(at))
        return constrain(copied, None, "batch", None, "heads").reshape(stacked.shape)

    def put(self, values: Tree, new: Tree, is_put: Bool[Array, " F"]) -> Tree:
        """Arrays [S, ...] with new values [F, ...] in those slots of the subset that `is_put` has.

        The other slots of the subset get what they have: no two of them are the same.
        """
        new = where_rows(is_put, new, self.take(values))
        return new if self.slot is None else _per_group(_replace, self.slot, values, new)


ALL_SLOTS = SlotSubset(slot=None)


def _per_group(function: Callable[..., Array], index: Int[Array, "G N"], *trees: Tree) -> Tree:
    """Applies function(*leaves, index) to each group's share of the leaves."""
    groups = index.shape[0]

    def apply(*leaves: Array) -> Array:
        split = by_rows([x.reshape(groups, -1, *x.shape[1:]) for x in leaves])
        out = by_rows(jax.vmap(function)(*split, index))
        return out.reshape(-1, *out.shape[2:])

    return jax.tree.map(apply, *trees)


def _replace(x: Array, new: Array, at: Array) -> Array:
    return x.at[at].set(new, unique_indices=True)


def where_rows(rows: Bool[Array, " B"], new: Tree, old: Tree) -> Tree:
    """Arrays [B, ...] with the new values in some rows, and the old ones in the others."""
    return jax.tree.map(
        lambda x, y: jnp.where(rows.reshape(-1, *(1 for _ in y.shape[1:])), x, y), new, old
    )
