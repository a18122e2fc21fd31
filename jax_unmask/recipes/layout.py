"""The mesh of a run that names none, and the memory that a step needs before it is compiled.

Every further shard of the weights is gathered by every forward, so the mesh has as few as fit the
memory of a device. The other devices have copies of the model (docs/scaling/planner.md).
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib

import jax
import jax.numpy as jnp

from jax_unmask.denoisers import DenoiserConfig, families, hub, sharding
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.environment.settings import RunSettings
from jax_unmask.recipes.base import Blueprint, bytes_per_device
from jax_unmask.runtime import accelerators
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import ConfigError
from jax_unmask.shipped import resolve_model

USABLE = 0.92
"""Part of a device's memory that programs get; the runtime has the rest, and gaps."""
_MARGIN = 1.15
"""Temporaries were up to so many times larger, or smaller, when compiled than estimated."""

logger = logging.getLogger(__name__)


def denoiser_shape(config: RunSettings) -> DenoiserConfig:
    """Shape of `config.model.path`: from its config.json, or as published under that hub name.

    Raises:
        ConfigError: it is neither a directory nor a known hub name.
    """
    path = config.model.path
    if path is None:
        raise ConfigError(
            "model.path",
            path,
            "the shape of a model from scratch follows from its task's vocabulary",
            "Give a model's directory, or a hub name",
        )
    directory = pathlib.Path(resolve_model(path)).expanduser()
    if directory.is_dir():
        shape = read_config(directory)
    elif path in families.PUBLISHED:
        shape = families.published_config(path)
    else:
        try:
            shape = read_config(hub.local_directory(path, weights=False))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                "model.path",
                path,
                f"its shape is not known here ({error})",
                f"Give a directory with its config.json, or one of {', '.join(families.PUBLISHED)}",
            ) from error
    return dataclasses.replace(
        shape, dtype=config.model.dtype, param_dtype=config.model.param_dtype
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory of a training step on a device, in bytes, from shapes alone."""

    lasting: int  # From step to step, and between the programs of a step.
    rollout: int  # Temporaries.
    update: int

    @property
    def total(self) -> int:
        """Bytes of the step at its peak."""
        return self.lasting + max(self.rollout, self.update)

    def fits(self, memory_bytes: float) -> bool:
        """Whether a device with so much memory has room, estimates being too low included."""
        temporaries = _MARGIN * max(self.rollout, self.update)
        return self.lasting + temporaries <= USABLE * memory_bytes


def estimate(
    config: RunSettings, shape: DenoiserConfig, placement: Placement, blueprint: Blueprint
) -> Estimate:
    """The memory of a step.

    Temporaries are those of the largest arrays that are alive together: activations of one layer
    (MLP, attention, residual stream), vocabulary matrices gathered whole, caches, and in updates
    gradients with the optimiser's steps in float32. Fitted to what XLA compiles for CPUs, its
    float32 copies apart (docs/scaling/planner.md).
    """
    mesh = placement.mesh
    shards = 1 if mesh is None else mesh.shape["fsdp"] * mesh.shape["tensor"]
    length = config.task.prompt_length + config.sampling.gen_length
    rows = -(-config.rows_at_once // placement.shards)
    states = -(-config.states_at_once // placement.shards)
    width = shape.intermediate_size
    if shape.experts is not None:
        width = max(
            shape.experts.per_token * shape.experts.size + (shape.experts.shared_size or 0), 1
        )
    per_token = 8 * width + 4 * shape.num_heads * length + 4 * shape.hidden_size
    table = shape.vocab_size * shape.hidden_size
    narrow = jnp.dtype(shape.dtype).itemsize
    rollout = 0
    if rows:
        rollout = rows * length * per_token + 2 * table * narrow
        if config.sampling.cache is not None:
            kept = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * narrow
            rollout += rows * length * kept
    update = 0
    if states:
        trained = sum(leaf.size for leaf in jax.tree.leaves(blueprint.trained))
        # Without rematerialisation every layer's activations wait for the backward pass.
        layers = shape.num_layers
        kept = layers * narrow * shape.hidden_size + per_token
        if not getattr(config.model, "remat", False):
            kept = layers * per_token
        tables = 4 if shards > 1 else 2
        update = 8 * trained // shards + 4 * tables * table + states * length * kept
    between = sum(map(bytes_per_device, (*blueprint.lasting.values(), blueprint.passing)))
    return Estimate(between, rollout, update)


def device_memory() -> int | None:
    """Bytes of memory of a device of this machine; None where that is not known, as of CPUs."""
    if (device := accelerators.here()) is not None:
        return device.memory_bytes
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def choose_mesh(config: RunSettings, memory_bytes: float | None) -> RunSettings:
    """The settings with a mesh: the given one, or that with the fewest shards which fit.

    Says which it chose, and why. All devices have a copy where their memory is not known.

    Args:
        config: the settings; `mesh.fsdp` = 0 leaves the choice.
        memory_bytes: of a device; None where that is not known.
    """
    sizes, devices = config.mesh, len(accelerators.devices())
    if sizes.fsdp or devices == 1 or memory_bytes is None or config.model.path is None:
        return config
    from jax_unmask import recipes

    recipe = recipes.find(config.recipe)
    try:
        shape = denoiser_shape(config)
    except (ValueError, OSError):  # Loading it says what is wrong.
        return config
    if not hasattr(recipe, "blueprint"):
        return config
    per_copy = devices // max(sizes.tensor, 1)
    found: dict[int, Estimate] = {}
    chosen = config
    for fsdp in [each for each in range(1, per_copy + 1) if per_copy % each == 0]:
        mesh = dataclasses.replace(sizes, data=-1, fsdp=fsdp)
        if sizes.data > 0 and sizes.data * fsdp != per_copy:
            continue
        candidate = dataclasses.replace(config, mesh=mesh)
        try:
            placement = placements.from_config(candidate)
            sharding.check_mesh(shape, placement.mesh)
        except ConfigError:  # So many shards do not divide the model.
            continue
        candidate.check_spread(placement)
        blueprint = recipe.blueprint(candidate, shape, placement)
        found[fsdp], chosen = estimate(candidate, shape, placement, blueprint), candidate
        if found[fsdp].fits(memory_bytes):
            break
    if not found:
        return config
    logger.info("%s", _reason(found, per_copy, sizes.tensor, memory_bytes))
    return chosen


def _reason(found: dict[int, Estimate], per_copy: int, tensor: int, memory_bytes: float) -> str:
    *before, last = found
    size = memory_bytes / accelerators.GB
    text = f"Mesh: data {per_copy // last} x fsdp {last} x tensor {tensor}. "
    if not found[last].fits(memory_bytes):
        return (
            f"{text}A step needs about {found[last].total / 1e9:.1f} GB of the {size:.0f} GB of a "
            "device even so; it may not fit: see jax_unmask.plan --compile"
        )
    text += f"A step needs about {found[last].total / 1e9:.1f} GB of the {size:.0f} GB of a device"
    if before:
        text += f", and with fsdp {before[-1]} {found[before[-1]].total / 1e9:.1f} GB"
    return f"{text}; set mesh.fsdp for another"
