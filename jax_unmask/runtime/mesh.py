"""Device meshes, the mesh axes of named array dimensions, and the rules for parameters.

Code inside `jax.jit` uses the mesh of the enclosing `jax.set_mesh`. Without one, or with a single
device, nothing here changes a program.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jax_unmask.runtime import accelerators

Params = Any
Rules = Sequence[tuple[str, PartitionSpec]]
Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
"""Axes that rows of a batch are spread over."""

LOGICAL: dict[str, str | tuple[str, ...]] = {
    "batch": BATCH,
    "embed": "fsdp",  # Of parameters: the width of the residual stream. Activations have it whole.
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Mesh axes of the named dimensions of all arrays; dimensions without a name are not sharded."""

REPLICATED: Rules = ((".*", PartitionSpec()),)
"""Rules by which every array is whole on all devices."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh with axes ("data", "fsdp", "tensor") that uses all devices.

    Args:
        data: copies of the parameters, each with its shard of the batch.
        fsdp: shards of the parameters, each also with its shard of the batch.
        tensor: shards of single matrix products.

    At most one size may be -1: all remaining devices. Axes are of type Auto: XLA chooses the
    shardings that inputs and outputs leave open. (`jax.make_mesh` defaults to Explicit.)

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    used = list(accelerators.devices())
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(
            f"mesh {asked}: sizes must be positive, and at most one may be -1 (what is left)"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and len(used) % fixed == 0:
        sizes[open_axes[0]] = len(used) // fixed
    elif fixed != len(used):
        raise ValueError(
            f"mesh {asked} does not fit {len(used)} devices: the sizes multiply to {fixed}, which "
            + ("must divide that number" if open_axes else "must equal that number (or set one -1)")
        )
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
    return Mesh(by_process(over_network(shape, used)), AXES, axis_types=types)


def by_process(ordered: np.ndarray) -> np.ndarray:
    """An order of these devices in which the shards of a batch on a process follow each other.

    A process feeds one run of rows. The given order stays where it allows that. Otherwise shards of
    a process follow each other, each as near as possible to those before it on data and fsdp.
    """
    fsdp, parts = ordered.shape[1], ordered.reshape(-1, ordered.shape[2])
    owner = np.array([min(each.process_index for each in part) for part in parts])
    if np.count_nonzero(np.diff(owner)) == len(set(owner.tolist())) - 1:
        return ordered
    # A slice is further away than anything in this one.
    places = np.array([[(*_coordinates(each), 0, 0, 0)[:4] for each in part] for part in parts])
    left = np.ones(len(parts), bool)
    order: list[np.intp] = []
    for index in range(len(parts)):
        mine = np.flatnonzero(left & (owner == owner[order[-1]])) if order else np.array([0])
        open_parts = mine if len(mine) else np.flatnonzero(left)
        before = [order[index - fsdp]] if index >= fsdp else []
        before += [order[-1]] if index % fsdp else []
        hops = sum(np.abs(places[open_parts] - places[each]).sum((1, 2)) for each in before)
        order.append(open_parts[np.argmin(hops + np.zeros(len(open_parts)))])
        left[order[-1]] = False
    return parts[order].reshape(ordered.shape)


def _coordinates(device: Any) -> tuple[int, ...]:
    far = 10**6 * getattr(device, "slice_index", 0)
    return (far, *getattr(device, "coords", ()))


def over_network(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the order in which axes of these sizes suit their network.

    Neighbours on an axis are near each other there. Slices, whose network is slower, lie along
    data, or along fsdp where that has no multiple of their number.

    Raises:
        ValueError: neither axis has.
    """
    slices = len({getattr(each, "slice_index", 0) for each in devices})
    # An axis of 2 is half of a side of 4.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, list(devices), **split)
    across = next((axis for axis in range(2) if shape[axis] % slices == 0), None)
    if across is None:
        raise ValueError(
            f"a mesh of {shape} does not lie over {slices} slices: data or fsdp must be a multiple "
            f"of {slices}"
        )
    outer = tuple(slices if axis == across else 1 for axis in range(len(shape)))
    inner = tuple(size // count for size, count in zip(shape, outer, strict=True))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, list(devices), **split)


def spec(*names: str | None) -> PartitionSpec:
    """The `PartitionSpec` of an array whose dimensions have these names in `LOGICAL`."""
    return PartitionSpec(*(None if name is None else LOGICAL[name] for name in names))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Number of shards of a batch, over the axes that no enclosing `shard_map` has taken."""
    return math.prod(mesh.shape[axis] for axis in BATCH if axis in free_axes(mesh))


def free_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of a mesh that no `shard_map` around this code has taken."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in types if kind == AxisType.Auto)


def active() -> AbstractMesh | None:
    """The mesh around this code, if an axis that no `shard_map` has taken spreads anything.

    Raises:
        ValueError: it lacks an axis of `AXES`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if missing := [axis for axis in AXES if not mesh.empty and axis not in mesh.shape]:
        raise ValueError(
            f"the mesh in use has axes {tuple(mesh.shape)}, and lacks {', '.join(missing)}; make "
            "it with jax_unmask.runtime.mesh.make_mesh, or give it these axes too (of size 1 where "
            "they spread nothing)"
        )
    if mesh.empty or all(mesh.shape[axis] == 1 for axis in free_axes(mesh)):
        return None
    return mesh


def active_over(rows: int) -> AbstractMesh | None:
    """`active`, but None too where so many rows cannot be spread: initialisation traces one."""
    mesh = active()
    return None if mesh is None or rows % batch_shards(mesh) else mesh


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains the sharding of an array, where XLA might choose another.

    Args:
        x: any array, also of typed PRNG keys.
        names: of its first dimensions, see `LOGICAL`; the others are not sharded, and neither is a
            dimension that its axes do not divide.
    """
    mesh = active()
    if mesh is None:
        return x
    axes = []
    for size, group in zip(x.shape, map(_group, _free(spec(*names), mesh)), strict=False):
        parts = math.prod(mesh.shape[name] for name in group)
        axes.append(group if size % parts == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def on_each_device(
    function: Callable[..., Any], in_specs: Any, out_specs: Any, *, check_vma: bool = True
) -> Callable[..., Any]:
    """`jax.shard_map` of the mesh around this code, over the axes that none around it has taken."""
    mesh = active()
    assert mesh is not None

    def free(specs: Any) -> Any:
        return jax.tree.map(
            lambda each: _free(each, mesh),
            specs,
            is_leaf=lambda each: isinstance(each, PartitionSpec),
        )

    return jax.shard_map(
        function,
        in_specs=free(in_specs),
        out_specs=free(out_specs),
        axis_names=set(free_axes(mesh)),
        check_vma=check_vma,
    )


def by_rows(tree: Tree, axis: int = 0) -> Tree:
    """`constrain` for arrays that all have the rows of a batch along one axis."""
    if active() is None:
        return tree
    names = (*(None for _ in range(axis)), "batch")
    return jax.tree.map(lambda x: constrain(x, *names), tree)


def param_shardings(params: Params, rules: Rules, mesh: Mesh | AbstractMesh) -> Params:
    """A sharding for each leaf, by the first rule whose pattern is found in the leaf's path.

    Rules with more dimensions than the leaf are for other leaves of that name, and are skipped.

    Args:
        params: nested dict of arrays or `jax.ShapeDtypeStruct`.
        rules: ordered pairs of a regular expression, searched for in paths such as
            "layers/attention/query/kernel", and a `PartitionSpec`. End with (".*", P()) to
            replicate the rest.
        mesh: a mesh that has the axes that the rules name.

    Raises:
        ValueError: no rule matches a path, all that do have more dimensions than the leaf, a rule
            names an axis that the mesh lacks, or a dimension is not divisible by its axes (all
            named).
    """

    def choose(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = [(pattern, spec) for pattern, spec in rules if re.search(pattern, name)]
        # A vector may share the name of a matrix: the head of a value model that of a denoiser.
        fitting = [rule for rule in found if len(rule[1]) <= len(leaf.shape)] or found
        for pattern, spec in fitting:
            _check(name, leaf.shape, pattern, spec, mesh)
            return NamedSharding(mesh, spec)
        raise ValueError(
            f"no sharding rule matches parameter {name} of shape {tuple(leaf.shape)}; "
            "end the rules with ('.*', PartitionSpec()) to replicate what no other rule names"
        )

    return jax.tree_util.tree_map_with_path(choose, params)


def _group(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes that one dimension is spread over."""
    return () if axes is None else axes if isinstance(axes, tuple) else (axes,)


def _free(spec: PartitionSpec, mesh: AbstractMesh) -> PartitionSpec:
    """A spec without the axes of the enclosing `shard_map`, in which arrays are shards already."""
    free = free_axes(mesh)
    kept = (tuple(axis for axis in _group(axes) if axis in free) for axes in spec)
    return PartitionSpec(*(group or None for group in kept))


def _check(
    name: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> None:
    where = f"sharding rule {pattern!r} -> {spec} on parameter {name} of shape {tuple(shape)}"
    if len(spec) > len(shape):
        raise ValueError(f"{where}: the rule has {len(spec)} dimensions")
    for dimension, axes in enumerate(spec):
        names = _group(axes)
        unknown = [axis for axis in names if axis not in mesh.shape]
        if unknown:
            raise ValueError(f"{where}: the mesh has no axis {unknown[0]!r}, only {AXES}")
        parts = math.prod(mesh.shape[axis] for axis in names)
        if shape[dimension] % parts:
            raise ValueError(
                f"{where}: dimension {dimension} ({shape[dimension]}) is not divisible by the "
                f"{parts} devices of {names}. Use a smaller axis or another rule"
            )
