"""Abstract arrays in their places on a mesh."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jax_unmask.denoisers.sharding import RULES
from jax_unmask.runtime.mesh import param_shardings, spec
from jax_unmask.runtime.placement import Placement

Tree = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """Puts shapes where a run puts its arrays.

    Attributes:
        placement: the mesh; without one, shapes stay as they are.
    """

    placement: Placement

    def parameters(self, tree: Tree) -> Tree:
        """Shardings of parameters, and of trees derived from them, by the sharding rules."""
        if self.placement.mesh is None:
            return tree
        shardings = param_shardings(tree, RULES, self.placement.mesh)
        return jax.tree.map(_placed, tree, shardings)

    def everywhere(self, tree: Tree) -> Tree:
        """Whole on every device."""
        return self._spread(tree, PartitionSpec())

    def rows(self, tree: Tree) -> Tree:
        """A batch, [B, ...]."""
        return self._spread(tree, spec("batch"))

    def records(self, tree: Tree) -> Tree:
        """Records of a rollout's steps, [T, B, ...]."""
        return self._spread(tree, spec(None, "batch"))

    def _spread(self, tree: Tree, where: PartitionSpec) -> Tree:
        mesh = self.placement.mesh
        if mesh is None:
            return jax.tree.map(_plain, tree)
        return jax.tree.map(
            lambda leaf: _placed(
                leaf, NamedSharding(mesh, where if leaf.ndim >= len(where) else PartitionSpec())
            ),
            tree,
        )


def bytes_per_device(tree: Tree) -> int:
    """Bytes of abstract arrays on one device."""

    def size(leaf: Any) -> int:
        shape, dtype = leaf.shape, leaf.dtype
        if leaf.sharding is not None:
            shape = leaf.sharding.shard_shape(shape)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            bits = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = bits.shape, bits.dtype
        return math.prod(shape) * dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def _plain(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
