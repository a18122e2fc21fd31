"""An update whose rows are spread over devices: each works on its own, and says what it found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int

from jax_unmask.runtime.mesh import BATCH, active, active_over, spec

Tree = TypeVar("Tree")


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
