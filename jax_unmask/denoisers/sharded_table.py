"""The output projection where its vocabulary is sharded over devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.transformer import project
from jax_unmask.runtime.mesh import active_over, free_axes, on_each_device, spec

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class TableShard:
    """One device's shard of an output projection, inside `over_table`; or all of it."""

    table: Float[Array, "C D"]  # Its rows, sharded along the fsdp axis if there is one.
    first: Int[Array, ""] | int = 0  # Token of the first row.
    fsdp: int = 1  # Devices that share the width of these rows.
    tensor: int = 1  # Devices that share the vocabulary.
    # Axes of devices with the same shard and other rows of the batch, beside fsdp. None inside of a
    # `shard_map` over them, which sums over them itself.
    copies: tuple[str, ...] = ()
    is_whole: bool = False  # The rows are whole along the fsdp axis already.

    @property
    def size(self) -> int:
        """Number of tokens of this shard."""
        return self.table.shape[0]

    def gathered(self, dtype: Any) -> "TableShard":
        """The shard with its rows whole along the fsdp axis, for several uses in that type."""
        return dataclasses.replace(self, table=self.whole(self.table.astype(dtype)), is_whole=True)

    def whole(self, table: Float[Array, "c d"]) -> Float[Array, "c D"]:
        """Some of the rows, whole along the fsdp axis."""
        if self.fsdp == 1 or self.is_whole:
            return table
        return jax.lax.all_gather(table, "fsdp", axis=1, tiled=True)

    def logits(
        self, hidden: Float[Array, "*B D"], first: Array | int, count: int
    ) -> Float[Array, "*B c"]:
        """Logits of `count` tokens of this shard, from `first` on."""
        table = self.table
        if count < self.size:
            table = jax.lax.dynamic_slice_in_dim(table, first, count)
        # It is gathered in the type of the product.
        return project(self.whole(table.astype(hidden.dtype)), hidden)

    def all_logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Logits of the whole vocabulary."""
        logits = self.logits(hidden, 0, self.size)
        if self.tensor == 1:
            return logits
        return jax.lax.all_gather(logits, "tensor", axis=logits.ndim - 1, tiled=True)

    def picked(self, logits: Float[Array, "*B c"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
        """The logits of the labels, from all tokens of this shard; 0 for those of others."""
        place = labels - self.first
        if self.tensor == 1:
            return jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
        is_here = (place >= 0) & (place < self.size)
        at = jnp.where(is_here, place, 0)
        return jnp.where(is_here, jnp.take_along_axis(logits, at[..., None], axis=-1)[..., 0], 0.0)

    def sum(self, x: Array) -> Array:
        """Sum over the shards of the vocabulary."""
        return x if self.tensor == 1 else jax.lax.psum(x, "tensor")

    def max(self, x: Array) -> Array:
        """Maximum over the shards of the vocabulary."""
        return x if self.tensor == 1 else jax.lax.pmax(x, "tensor")

    def gradient_shard(self, gradient: Float[Array, "C D"]) -> Float[Array, "C d"]:
        """The shard's gradient from that of its whole rows, summed over the batch."""
        if self.fsdp > 1:
            gradient = jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=1, tiled=True)
        return jax.lax.psum(gradient, self.copies) if self.copies else gradient

    def over_all(self, reduced: Tree, merge: Callable[[Tree, Tree], Tree]) -> Tree:
        """The reduction of the whole vocabulary from that of each shard, merged in order."""
        if self.tensor == 1:
            return reduced
        parts = jax.tree.map(lambda x: jax.lax.all_gather(x, "tensor"), reduced)
        each = [jax.tree.map(lambda x, k=k: x[k], parts) for k in range(self.tensor)]
        return functools.reduce(merge, each)


@jax.named_scope("head")  # For profiles and plans.
def over_table(
    function: Callable[..., Any], table: Float[Array, "V D"], *rows: Array, names: Any = ("batch",)
) -> Any:
    """function(shard, *rows) on each device, with its shard of the table and its rows.

    Args:
        function: must return the same on devices with different shards of the vocabulary, where
            that is no dimension of its result.
        table: output projection.
        rows: arrays with the rows of a batch.
        names: dimensions of the result, see `runtime.mesh.LOGICAL`; or a list of such.
    """
    mesh = active_over(rows[0].shape[0])
    if mesh is None:
        return function(TableShard(table), *rows)
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    copies = tuple(axis for axis in free_axes(mesh) if axis == "data" and mesh.shape[axis] > 1)

    def of_shard(table: Array, *rows: Array) -> Any:
        first: Array | int = 0
        if tensor > 1:
            first = jax.lax.axis_index("tensor") * jnp.int32(table.shape[0])
        return function(TableShard(table, first, fsdp, tensor, copies), *rows)

    # The output is the same along the tensor axis, by gathers instead of sums, which types do not
    # express. Derivatives are up to the caller.
    split = on_each_device(
        of_shard,
        (spec("vocab", "embed"), *(spec("batch") for _ in rows)),
        tuple(spec(*each) for each in names) if isinstance(names, list) else spec(*names),
        check_vma=False,
    )
    return split(table, *rows)
