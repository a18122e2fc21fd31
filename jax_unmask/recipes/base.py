"""The interface of recipes to the training loop, and functions that several of them share."""

import abc
import contextlib
import dataclasses
import hashlib
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_unmask import denoisers, policies
from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.environment.bundle import Bundle, describe
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.optim import OptimizerSettings
from jax_unmask.rollout import Cache, Prompts, RolloutSettings, check_rollout, row_keys
from jax_unmask.runtime import agreement
from jax_unmask.runtime.accelerators import Accelerator
from jax_unmask.runtime.exports import EXPORTS, Trained, places
from jax_unmask.runtime.files import local_path
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import ConfigError, SettingError, naming, setting
from jax_unmask.tasks import data

logger = logging.getLogger(__name__)
Metrics = Mapping[str, Any]
Tree = Any

# Larger splits are those of tasks that generate their problems, up to 2**31 of them.
_SCANNED_WHOLE, _SCANNED_ELSE = 100_000, 256


@dataclasses.dataclass(frozen=True)
class TracedProgram:
    """One program of a training step."""

    name: str
    lowered: Any  # jax.stages.Lowered
    has_denoiser: bool = True  # It runs the denoiser.
    made: Tree = None  # Arrays that it reads, made for it and freed after it.


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A training step as shapes in their places."""

    lasting: dict[str, Tree]  # What devices hold from step to step, by name.
    passing: Tree  # What one program of a step leaves for the next.
    trained: Tree  # Parameters that are trained.
    programs: tuple[TracedProgram, ...]  # In the order in which they run.
    acting: Tree = None  # The denoiser as rollouts read it; None where there are none.


ASSUMED_UTILISATION = 0.4
"""Share of the peak that a step is assumed to reach."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Matrix products of a step, in operations over all devices."""

    nfe: int  # Forwards that a row is assumed to need; 0 for recipes without rollouts.
    rollout: float
    update: float  # With its backward pass.

    def seconds(self, device: Accelerator, devices: int) -> tuple[float, float]:
        """Seconds of rollout and update at `ASSUMED_UTILISATION`, were nothing ever waited for."""
        speed = device.flops * devices * ASSUMED_UTILISATION
        return self.rollout / speed, self.update / speed


def prompt_shapes(placement: Placement, rows: int, length: int) -> tuple[Any, Any]:
    """Prompts and keys of a batch."""
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask = jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)
    keys = jax.eval_shape(lambda key: row_keys(key, rows), jax.random.key(0))
    prompts: Any = Prompts(tokens=tokens, mask=mask)  # type: ignore[arg-type]
    return placement.rows((prompts, keys))


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


class Recipe(abc.ABC):
    """A way to train: builds model, data and learner from a config, then takes steps.

    Everything random in a step follows from the state's key and step and from the batch, so a run
    that is resumed from (state, position of the data) continues exactly.

    A recipe has `metrics`, `defaults`, `trains` and the abstract methods below. All other members
    are optional: one that does not inherit from this class gets their defaults (`recipes.find`).

    Attributes:
        metrics: names of all metrics that a step can have, with `*` for what depends on the
            settings; `checkpoint.best_metric` is one of them.
        defaults: its settings at their defaults, an instance of a subclass of `RunSettings`.
        trains: what `finish` exports, and what later stages of a curriculum and evaluations take: a
            denoiser, a policy, or both (`runtime.exports` says where).
        shown: optional; names of the metrics that the progress bar shows.
        current: optional method, `current(state) -> Bundle`: the denoiser as it is, for
            measurements while training (`eval.every`).
        build_policy: optional function, `build_policy(config, shape) -> LearnedPolicy`: the policy
            without its weights, for evaluations of bare checkpoints.
        blueprint: optional class method, `blueprint(config, shape, placement) -> Blueprint`: a
            training step as shapes, and its programs as traced. The planner compiles it, and the
            choice of a mesh estimates memory from it.
        work: optional class method beside it, `work(config, shape, nfe=None) -> Work`: matrix
            products of a step before it is run. `nfe` are the forwards that a row needs; half the
            canvas by default.
    """

    metrics: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Any]
    trains: ClassVar[tuple[Trained, ...]]

    shown: ClassVar[tuple[str, ...]] = ()
    current: ClassVar[Any] = None
    build_policy: ClassVar[Any] = None
    blueprint: ClassVar[Any] = None
    work: ClassVar[Any] = None

    @classmethod
    def metrics_of(cls, config: Any) -> tuple[str, ...]:
        """The names of `metrics` that steps with these settings have; all by default."""
        del config
        return cls.metrics

    @classmethod
    def check(cls, config: Any, workdir: pathlib.Path) -> Bundle | None:
        """Reads all that a training needs but weights.

        It comes before the weights are loaded, and before the first stage of a curriculum. By
        default it reads the model's other files, and encodes the prompts. `workdir` may receive
        files, which are not kept.

        Returns:
            What was read; None where the denoiser's shape is not known.

        Raises:
            ConfigError, OSError, ValueError: the training could not begin.
        """
        del workdir
        if config.model.path is None:
            return None
        bundle = describe(config)
        check_examples(config, bundle)
        return bundle

    @abc.abstractmethod
    def __init__(self, config: Any, workdir: pathlib.Path) -> None:
        """Loads what training needs; the workdir receives files."""

    @abc.abstractmethod
    def init(self) -> TrainState:
        """The state before the first step; frees loaded weights that no step needs beside it."""

    @abc.abstractmethod
    def like(self) -> TrainState:
        """Shapes and places of the arrays of `init`, for a run that restores its state instead.

        It frees the same weights, and makes none.
        """

    @abc.abstractmethod
    def data(self) -> data.BatchIterator:
        """Training batches from the start; its position can be saved and set.

        Raises:
            ValueError, OSError: the data cannot be read, or hold what does not fit the config.
        """

    @abc.abstractmethod
    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        """One training step: the new state, and scalar metrics (host numbers or device arrays).

        Args:
            state: the training state; may be donated.
            batch: the next batch of `data`.
            timer: takes the seconds of each phase of the step.
        """

    @abc.abstractmethod
    def flops(self, metrics: Mapping[str, float]) -> float:
        """Matrix products that the maths of a step needs, over all devices, in operations.

        A forward that a row needs counts once, a forward with its gradient three times; what is
        computed again to save memory, or for rows that are done, counts nothing. `metrics` are
        those of that step, on the host.
        """

    @abc.abstractmethod
    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle | None:
        """Exports what was trained, and returns it for an evaluation.

        None for recipes that train neither a denoiser nor a policy, which have no evaluation.
        """


def check_schedule(optimizer: OptimizerSettings, total_steps: int) -> None:
    """Raises a `ConfigError` if warm-up leaves nothing of a run."""
    try:
        optimizer.check_steps(total_steps)
    except SettingError as error:
        raise error.within("optimizer") from error


def parse_policy(key: str, text: str, *, final: bool = True) -> tuple[Any, Any]:
    """The policy that a key of a config names, and its parameters.

    With `final` it must not take tokens back either.

    Raises:
        ConfigError: it cannot be read; or it changes tokens that were filled, and the learner needs
            one step per token.
    """
    with naming(key, text, kind=ConfigError):
        policy, params = policies.parse_policy(text)
    if policy.needs.post_steps is not None or (final and not policy.needs.final_tokens):
        problem = "it changes tokens that were filled, and the learner needs one step per token"
        raise ConfigError(key, text, problem, "Choose one that does not, such as dynamic")
    return policy, params


def check_policy(
    key: str, text: str, denoiser: DenoiserConfig, settings: RolloutSettings, *, final: bool = True
) -> None:
    """Raises a `ConfigError` unless the policy that a key names can act on these canvases."""
    policy, params = parse_policy(key, text, final=final)
    try:
        check_rollout(text, policy, params, denoiser, settings, key=key)
    except SettingError as error:
        raise error.within("") from error


def check_cache(cache: Cache | None, denoiser: DenoiserConfig) -> None:
    """Raises a `ConfigError` for a cache that does not fit the denoiser's attention."""
    if cache is not None:
        with naming("rollout.cache", str(cache), kind=ConfigError):
            cache.check_fits(denoiser)


def export_setting() -> Any:
    """The declaration of `export`, where `export_denoiser` writes."""
    text = "Where to write the trained denoiser in Hugging Face's format; None for WORKDIR/"
    return setting(None, f"{text}{EXPORTS['denoiser'].directory}.")


def check_export(directory: str | None) -> None:
    """Raises a `ConfigError` for an `export` that `export_denoiser` could not write to."""
    try:
        local_path(directory or "")
    except ValueError as error:
        problem = str(error).partition(": ")[2]
        raise ConfigError("export", directory, problem, "Give a directory") from error


def export_denoiser(config: Any, bundle: Bundle, workdir: pathlib.Path) -> Bundle:
    """Saves a trained denoiser to its place in Hugging Face format.

    Returns:
        The bundle without a name, for evaluation.
    """
    directory = places(("denoiser",), workdir, config.export)["denoiser"]
    denoisers.save_pretrained(directory, bundle.denoiser, bundle.params, bundle.tokenizer)
    return dataclasses.replace(bundle, name="")


def check_fits(denoiser: DenoiserConfig, prompt_length: int, gen_length: int) -> None:
    """Raises a `ConfigError` for sequences that are longer than the denoiser was made for."""
    total = prompt_length + gen_length
    if total > denoiser.max_length:
        raise ConfigError(
            "task.prompt_length",
            prompt_length,
            f"with a canvas of {gen_length} that makes {total} tokens, more than the "
            f"{denoiser.max_length} that the denoiser was made for",
            "Lower it or gen_length",
        )


def training_batches(
    config: Any, bundle: Bundle, placement: Placement, batch_size: int, **changes: Any
) -> data.BatchIterator:
    """Batches of the training split without end, this process's shard of them.

    `changes` are fields of `tasks.data.BatchSettings` that do not follow from the config.

    Raises:
        ConfigError: when iterating, an example does not fit; `check_examples` finds most before.
    """
    shard = dataclasses.replace(
        _batch_settings(config, batch_size, **changes),
        shard_index=placement.feed,
        shard_count=placement.feeds,
    )
    return _TrainingBatches(data.batches(bundle.task, "train", bundle.tokenizer, shard))


def check_examples(config: Any, bundle: Bundle, **changes: Any) -> None:
    """Encodes every training example once, so that one over its budget stops no run half-way.

    Of a task that generates its problems, the first ones stand for all. `changes` are those of
    `training_batches`.

    Raises:
        ConfigError: an example does not fit; the message names it.
    """
    settings = _batch_settings(config, 128, num_epochs=1, shuffle=False, **changes)
    examples = len(bundle.task.source("train", seed=settings.seed))
    limit = examples if examples <= _SCANNED_WHOLE else _SCANNED_ELSE
    settings = dataclasses.replace(settings, limit=limit or None)
    lengths, digest = [], hashlib.sha256()
    remedy = f"Correct it, or choose another model (`model.path` = {config.model.path!r})"
    with naming("task.name", config.task.name, remedy, ConfigError), _keys_of_config():
        for batch in data.batches(bundle.task, "train", bundle.tokenizer, settings):
            lengths.append(batch.prompt_lengths[batch.valid])
            digest.update(np.asarray(batch.prompts.tokens).tobytes())
    agreement.require_same({"task.path": f"data with digest {digest.hexdigest()[:12]}"})
    over = np.concatenate(lengths) > settings.prompt_length
    if over.any() and bundle.placement.feed == 0:
        logger.warning(
            "%d of %d training prompts have more than task.prompt_length=%d tokens (up to %d); "
            "they lose their beginning, or are left out (task.truncate_prompts)",
            *(over.sum(), over.size, settings.prompt_length, max(map(np.max, lengths))),
        )


def _batch_settings(config: Any, batch_size: int, **changes: Any) -> data.BatchSettings:
    return data.BatchSettings(
        batch_size,
        config.task.prompt_length,
        seed=config.seed,
        **{"truncate": config.task.truncate_prompts, **changes},
    )


@contextlib.contextmanager
def _keys_of_config() -> Iterator[None]:
    """Names settings of `tasks.data.BatchSettings` in mistakes by the keys of configs."""
    keys = {
        "prompt_length": "task.prompt_length",
        "truncate": "task.truncate_prompts",
        "gen_length": "data.gen_length",
    }
    try:
        yield
    except SettingError as error:
        raise error.renamed(lambda key: keys.get(key, key)) from error


class _TrainingBatches(data.BatchIterator):
    """Batches whose mistakes are named by the keys of configs."""

    def __init__(self, batches: data.BatchIterator) -> None:
        self._batches = batches

    def __next__(self) -> data.Batch:
        with _keys_of_config():
            return next(self._batches)

    def get_state(self) -> data.State:
        return self._batches.get_state()

    def set_state(self, state: data.State) -> None:
        self._batches.set_state(state)
