"""Compares the tree of a checkpoint with the tree that is requested."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

REMEDY = "It belongs to another configuration: restore with that one, or use a new workdir."


class CheckpointError(ValueError):
    """A checkpoint is damaged, missing, or of another model."""


def abstract(tree: PyTree) -> PyTree:
    """Abstract form of a tree that Orbax is to restore: shapes, types and shardings.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The same tree. NumPy arrays stay, and are restored as NumPy arrays (JAX would cut 64-bit
        types to 32); the rest becomes `jax.ShapeDtypeStruct`, on the first device where a leaf has
        no sharding of its own.
    """
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def convert(leaf: Any) -> np.ndarray | jax.ShapeDtypeStruct:
        if isinstance(leaf, (np.ndarray, np.generic)):
            return np.asarray(leaf)
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"leaves must be arrays or jax.ShapeDtypeStruct, found {leaf!r}")
        sharding = getattr(leaf, "sharding", None) or single
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(convert, tree)


def require_same(saved: PyTree, wanted: PyTree, *, where: str, same_dtype: bool) -> None:
    """Compares names, shapes and dtypes of a saved tree with those that are wanted.

    Args:
        saved: leaves with `shape` and `dtype`, as Orbax's metadata gives them; PRNG keys as their
            bits, with one dimension more.
        wanted: what `abstract` returns.
        where: what is compared, for the message.
        same_dtype: whether another dtype is an error too.

    Raises:
        CheckpointError: names the first array that differs.
    """
    found, asked = _leaves_by_path(saved), _leaves_by_path(wanted)
    if found.keys() != asked.keys():
        missing = sorted(asked.keys() - found.keys())
        extra = sorted(found.keys() - asked.keys())
        raise CheckpointError(
            f"{where}: it lacks {_some(missing)}, and has {_some(extra)} besides. {REMEDY}"
        )
    for path, leaf in asked.items():
        shape, saved_shape = tuple(leaf.shape), tuple(found[path].shape)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key:
            shape = jax.eval_shape(jax.random.key_data, leaf).shape
        if saved_shape != shape:
            raise CheckpointError(
                f"{where}: {path} has shape {saved_shape}, but {shape} is needed. {REMEDY}"
            )
        if same_dtype and not is_key and found[path].dtype != leaf.dtype:
            raise CheckpointError(
                f"{where}: {path} is {found[path].dtype}, but {leaf.dtype} is needed. {REMEDY}"
            )


def bits(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree, on the host, under names such as `opt/0/mu/kernel`.

    Typed PRNG keys, which NumPy cannot hold, become their bits (uint32).
    """

    def on_host(leaf: Any) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    return {name: on_host(leaf) for name, leaf in _leaves_by_path(tree).items()}


def _leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves under names such as `opt/0/mu/kernel`, the same for tuples, classes and dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _some(names: list[str]) -> str:
    """The first few of many names."""
    if not names:
        return "nothing"
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
