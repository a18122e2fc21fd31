"""Device meshes, and the rules that lay parameters out on them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Params = Any
Rules = Sequence[tuple[str, PartitionSpec]]

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with axes ("data", "fsdp", "tensor") that uses all devices.

    Args:
        data: copies of the parameters, each with its part of the batch.
        fsdp: parts that parameters are cut into, each also with its part of the batch.
        tensor: parts that single matrix products are cut into.
        devices: the devices; all of all processes by default.

    At most one size may be -1: what the others leave. Axes are of type Auto: XLA places what the
    shardings of inputs and outputs leave open. (`jax.make_mesh` defaults to Explicit.)

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    used = list(jax.devices() if devices is None else devices)
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
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=used
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch [B, ...] spread over the data and fsdp axes, whole on the tensor axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def param_shardings(params: Params, rules: Rules, mesh: Mesh) -> Params:
    """A sharding for each leaf, by the first rule whose pattern is found in the leaf's path.

    Args:
        params: nested dict of arrays or `jax.ShapeDtypeStruct`.
        rules: ordered pairs of a regular expression, searched for in paths such as
            "layers/attention/query/kernel", and a `PartitionSpec`. End with (".*", P()) to
            replicate the rest.
        mesh: a mesh that has the axes that the rules name.

    Raises:
        ValueError: no rule matches a path, a rule has more dimensions than its leaf or names an
            axis that the mesh lacks, or a dimension is not divisible by its axes (all named).
    """

    def choose(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.search(pattern, name):
                _check(name, leaf.shape, pattern, spec, mesh)
                return NamedSharding(mesh, spec)
        raise ValueError(
            f"no sharding rule matches parameter {name} of shape {tuple(leaf.shape)}; "
            "end the rules with ('.*', PartitionSpec()) to replicate what no other rule names"
        )

    return jax.tree_util.tree_map_with_path(choose, params)


def shard_params(params: Params, rules: Rules, mesh: Mesh) -> Params:
    """Places parameters on a mesh; see `param_shardings`."""
    return jax.device_put(params, param_shardings(params, rules, mesh))


def _check(
    name: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec, mesh: Mesh
) -> None:
    where = f"sharding rule {pattern!r} -> {spec} on parameter {name} of shape {tuple(shape)}"
    if len(spec) > len(shape):
        raise ValueError(f"{where}: the rule has {len(spec)} dimensions")
    for dimension, axes in enumerate(spec):
        names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        unknown = [axis for axis in names if axis not in mesh.shape]
        if unknown:
            raise ValueError(f"{where}: the mesh has no axis {unknown[0]!r}, only {AXES}")
        parts = math.prod(mesh.shape[axis] for axis in names)
        if shape[dimension] % parts:
            raise ValueError(
                f"{where}: dimension {dimension} ({shape[dimension]}) is not divisible by the "
                f"{parts} devices of {names}. Use a smaller axis or another rule"
            )
