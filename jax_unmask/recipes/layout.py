"""The mesh of a run that names none, and the memory that a step needs before it is compiled.

Training: every further shard of the weights is gathered by every forward, so the mesh has as few as
fit the memory of a device. The other devices have copies of the model (docs/scaling/planner.md).
Rollouts: of the layouts that fit, the one in which a sequence takes least time, see `speed`. On
devices whose speed is not known, single products are spread over as few as hold the weights.
"""

import dataclasses
import itertools
import logging
import operator
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from jax_unmask.denoisers import DenoiserConfig, count_params, families, hub, sharding
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.environment.settings import RunSettings
from jax_unmask.recipes.base import Blueprint, Recipe, bytes_per_device
from jax_unmask.recipes.speed import seconds_per_sequence
from jax_unmask.runtime import accelerators
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.accelerators import Accelerator
from jax_unmask.runtime.placement import MeshSettings, Placement
from jax_unmask.runtime.terminal import size_text
from jax_unmask.settings import ConfigError, SettingError
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

    def refusal(
        self, config: RunSettings, memory_bytes: float, shards: int, needed: float | None = None
    ) -> ConfigError | None:
        """The error that says why no step can run on such devices; None if one might.

        Args:
            config: the settings.
            memory_bytes: of a device.
            shards: shards of the weights.
            needed: bytes of a step at its peak, where they are known; otherwise what lasts counts.
        """
        least, usable = self.lasting if needed is None else needed, USABLE * memory_bytes
        if least <= usable:
            return None
        more = -(-int(self.lasting * shards) // int(usable)) + 1
        remedy = f"Plan for more devices: weights and optimiser alone want {more} or more such"
        if self.lasting <= usable:
            remedy = "Lower what is alive at one time"
            key, count = config.rollout_key, config.rows_at_once
            if self.update >= self.rollout:
                key, count = config.update_key, config.states_at_once
            if key:
                remedy += f" (`{key}`: {count} sequences)"
        rank = f"{config.lora_key}.rank"
        if config.lora_key and not operator.attrgetter(rank)(config):
            remedy += f", or train adapters (`{rank}` = 32, `model.param_dtype` = 'bfloat16')"
        return ConfigError(
            "model.path",
            config.model.path,
            f"a step of recipe {config.recipe!r} needs {size_text(least)} on each device, and "
            f"programs get {size_text(usable)} of its {size_text(memory_bytes)}",
            remedy,
        )


def estimate(
    config: RunSettings, shape: DenoiserConfig, placement: Placement, blueprint: Blueprint
) -> Estimate:
    """The memory of a step.

    Temporaries are those of the largest arrays that are alive together: activations of one layer
    (MLP, attention, residual stream), vocabulary matrices gathered whole, caches, and in updates
    gradients with the optimiser's steps in float32. Fitted to what XLA compiles for CPUs, its
    float32 copies apart.
    """
    shards = _axis(placement, "fsdp") * _axis(placement, "tensor")
    length = config.task.prompt_length + config.sampling.gen_length
    rolling = placements.for_rollouts(config)
    rows = -(-config.rows_at_once // rolling.shards)
    if rows:
        rows = config.sampling.num_slots(rows, config.task.prompt_length)
    states = -(-config.states_at_once // placement.shards)
    width = shape.intermediate_size
    if shape.experts is not None:
        width = max(
            shape.experts.per_token * shape.experts.size + (shape.experts.shared_size or 0), 1
        )
    narrow = jnp.dtype(shape.dtype).itemsize

    def forward(positions: int, keys: int, tensor: int = 1) -> int:
        """One layer of a forward: MLP and scores of attention, and the residual stream."""
        inner = 8 * width + 4 * shape.num_heads * keys
        return positions * (inner // tensor + 4 * shape.hidden_size)

    table = shape.vocab_size * shape.hidden_size
    rollout = 0
    if rows:
        tensor, cache = _axis(rolling, "tensor"), config.sampling.cache
        rollout = 2 * table * narrow // tensor
        if cache is None:
            rollout += forward(rows * length, length, tensor)
        else:
            window = cache.window(config.sampling.gen_length, config.sampling.block_length)
            whole = config.task.prompt_length if cache.kind == "block" else length
            filling = forward(cache.rows_per_refresh(rows) * whole, whole, tensor)
            rollout += max(filling, forward(rows * window, window + length, tensor))
            kept = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * narrow
            rollout += rows * length * kept // tensor
        made = [program.made for program in blueprint.programs if program.made is not None]
        rollout += sum(map(bytes_per_device, made))
    update = 0
    if states:
        trained = sum(leaf.size for leaf in jax.tree.leaves(blueprint.trained))
        # Without rematerialisation every layer's activations wait for the backward pass.
        layers = shape.num_layers
        kept = layers * narrow * shape.hidden_size + forward(1, length)
        if not config.model.remat:
            kept = layers * forward(1, length)
        tables = 4 if shards > 1 else 2
        update = 8 * trained // shards + 4 * tables * table + states * length * kept
    between = sum(map(bytes_per_device, (*blueprint.lasting.values(), blueprint.passing)))
    return Estimate(between, rollout, update)


def _memory(device: Accelerator | None) -> int | None:
    """Bytes of memory of a device, by default of this machine; None where it is not known."""
    if device is not None:
        return device.memory_bytes
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


# A single device is asked whether it has room for weights of at least so many bytes.
_WORTH_ASKING = 10**9


def choose_mesh(
    config: RunSettings,
    device: Accelerator | None = None,
    *,
    refuses: bool = False,
    nfe: int | None = None,
) -> RunSettings:
    """The settings with a mesh: the given one, or that with the fewest shards which fit.

    Says which it chose, and why. All devices have a copy where their memory is not known.

    Args:
        config: the settings; `mesh.fsdp` = 0 leaves the choice for training, and
            `mesh.rollout_fsdp` = `mesh.rollout_tensor` = 0 that for rollouts.
        device: the type of the devices; by default that of this machine's.
        refuses: whether what no mesh has room for is an error.
        nfe: forwards that a row is assumed to need, see `compare_rollouts`.

    Raises:
        ConfigError: all devices together have no room for what a step keeps.
    """
    device = device or accelerators.here()
    memory_bytes = _memory(device)
    devices = len(accelerators.devices())
    is_settled = devices == 1 and not refuses
    if is_settled or memory_bytes is None or config.model.path is None:
        return config
    from jax_unmask import recipes

    recipe = recipes.find(config.recipe)
    try:
        shape = denoiser_shape(config)
    except (ValueError, OSError):  # Loading it says what is wrong.
        return config
    if recipe.blueprint is None:
        return config
    if devices == 1 and 4 * count_params(shape) < _WORTH_ASKING:
        return config
    found: list[tuple[MeshSettings, Estimate]] = []
    for training in _for_training(config, "denoiser" not in recipe.trains):
        candidate = dataclasses.replace(config, mesh=training)
        try:
            placement = placements.from_config(candidate)
            sharding.check_mesh(shape, placement.mesh)
        except ConfigError:  # So many shards do not divide the model.
            continue
        best = _with_rollouts(candidate, shape, placement, recipe, memory_bytes, device, nfe)
        if best is None:
            continue
        found.append(best)
        if best[1].fits(memory_bytes):
            break
    if not found:
        return config
    mesh, needed = found[-1]
    why = needed.refusal(config, memory_bytes, max(mesh.fsdp, 1) * max(mesh.tensor, 1))
    if refuses and why is not None:
        raise why
    if devices == 1:
        return config
    if mesh != config.mesh:
        comparison = _comparison(config, shape, found, device, nfe)
        logger.info("%s", _reason(found, memory_bytes, comparison))
    return dataclasses.replace(config, mesh=mesh)


def _for_training(config: RunSettings, is_frozen: bool) -> Iterator[MeshSettings]:
    """Meshes for training, the one with the fewest shards of the weights first."""
    sizes = config.mesh
    if sizes.fsdp:
        yield sizes
        return
    per_copy = len(accelerators.devices()) // max(sizes.tensor, 1)
    for fsdp in range(1, per_copy + 1):
        if per_copy % fsdp or (sizes.data > 0 and sizes.data * fsdp != per_copy):
            continue
        yield dataclasses.replace(sizes, data=-1, fsdp=fsdp)
        if is_frozen:  # There are no weights to shard.
            return


def _with_rollouts(
    config: RunSettings,
    shape: DenoiserConfig,
    placement: Placement,
    recipe: type[Recipe],
    memory_bytes: float,
    device: Accelerator | None,
    nfe: int | None,
) -> tuple[MeshSettings, Estimate] | None:
    """The mesh with a layout for rollouts too: the first that fits, or else the last possible."""
    found = None
    for mesh in _for_rollouts(config, shape, device, nfe):
        candidate = dataclasses.replace(config, mesh=mesh)
        try:
            sharding.check_mesh(shape, placements.for_rollouts(candidate).mesh)
            candidate.check_spread(placement)
        except SettingError:
            if mesh == config.mesh:  # There is no other to try.
                raise
            continue
        blueprint = recipe.blueprint(candidate, shape, placement)
        found = mesh, estimate(candidate, shape, placement, blueprint)
        total = found[1].lasting + found[1].update
        is_frozen = "denoiser" not in recipe.trains
        if found[1].fits(memory_bytes) or (total > memory_bytes and not is_frozen):
            break
    return found


def _for_rollouts(
    config: RunSettings, shape: DenoiserConfig, device: Accelerator | None, nfe: int | None
) -> list[MeshSettings]:
    """Layouts for rollouts, the fastest first; or those with whole weights on few devices."""
    sizes = config.mesh
    if sizes.rollout_fsdp or sizes.rollout_tensor or not config.rows_at_once:
        return [sizes]
    if device is not None:
        layouts = [layout for layout, _ in compare_rollouts(config, shape, device, nfe)]
    else:
        layouts = _layouts()
    return [
        dataclasses.replace(sizes, rollout_fsdp=fsdp, rollout_tensor=tensor)
        for _, fsdp, tensor in layouts
    ]


def compare_rollouts(
    config: RunSettings, shape: DenoiserConfig, device: Accelerator, nfe: int | None = None
) -> list[tuple[tuple[int, int, int], float]]:
    """Layouts (data, fsdp, tensor) for rollouts and the seconds of a sequence, fastest first.

    Whether they fit the memory is not looked at. A row needs `nfe` forwards, by default one for
    each two positions of the canvas, as for `Work`.
    """
    settings = dataclasses.replace(config.sampling, prompt_rows=config.rows_per_prompt)
    prompt = config.task.prompt_length
    rows, nfe = config.rows_at_once, nfe or settings.gen_length // 2
    found = [
        (layout, seconds_per_sequence(shape, settings, prompt, rows, nfe, device, layout))
        for layout in _layouts()
    ]
    return sorted(found, key=lambda each: each[1])


def _layouts() -> list[tuple[int, int, int]]:
    """Sizes of data, fsdp and tensor that the devices divide into, few shards first."""
    devices = len(accelerators.devices())
    divisors = [each for each in range(1, devices + 1) if devices % each == 0]
    pairs = itertools.product(divisors, divisors)
    return [
        (devices // (fsdp * tensor), fsdp, tensor)
        for fsdp, tensor in pairs
        if devices % (fsdp * tensor) == 0
    ]


def _comparison(
    config: RunSettings,
    shape: DenoiserConfig,
    found: Sequence[tuple[MeshSettings, Estimate]],
    device: Accelerator | None,
    nfe: int | None,
) -> str:
    """Speed of the chosen layout of rollouts, for the message."""
    mesh = found[-1][0]
    if device is None or not (mesh.rollout_tensor and config.rows_at_once):
        return ""
    seconds = {layout[1:]: took for layout, took in compare_rollouts(config, shape, device, nfe)}
    chosen = seconds[mesh.rollout_fsdp, mesh.rollout_tensor]
    return f" (about {chosen:.2g} s a sequence on all devices, the least of what fits)"


def _axis(placement: Placement, name: str) -> int:
    return 1 if placement.mesh is None else placement.mesh.shape[name]


def _reason(
    found: Sequence[tuple[MeshSettings, Estimate]], memory_bytes: float, comparison: str
) -> str:
    mesh, last = found[-1]

    def axes(fsdp: int, tensor: int) -> str:
        data = len(accelerators.devices()) // (fsdp * tensor)
        return f"data {data} x fsdp {fsdp} x tensor {tensor}"

    text = f"Mesh: {axes(mesh.fsdp, mesh.tensor)}"
    if mesh.rollout_tensor:
        text += f", for rollouts {axes(mesh.rollout_fsdp, mesh.rollout_tensor)}{comparison}"
    needed, size = size_text(last.total), size_text(memory_bytes)
    text += f". A step needs about {needed} of the {size} of a device"
    if not last.fits(memory_bytes):
        return f"{text} even so; it may not fit: see jax_unmask.plan --compile"
    if len(found) > 1:
        mesh, before = found[-2]
        text += f", and with fsdp {mesh.fsdp} {size_text(before.total)}"
    return f"{text}; set mesh.fsdp, .rollout_fsdp and .rollout_tensor for others"
