"""Recipe "sft": a denoiser learns to fill in masked responses."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jax_unmask import denoisers
from jax_unmask.denoisers import number_embeddings, word_level
from jax_unmask.denoisers.flops import forward_flops
from jax_unmask.denoisers.sharding import RULES, check_mesh
from jax_unmask.environment.bundle import Bundle, load_bundle, load_task
from jax_unmask.learners.state import TrainState
from jax_unmask.learners.supervised.corruption import Masking
from jax_unmask.learners.supervised.sft import SftBatch, SftLearner
from jax_unmask.recipes.base import (
    Metrics,
    build_optimizer,
    check_fits,
    export_denoiser,
    training_batches,
)
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime import streams
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks import data
from jax_unmask.tasks.generated import ClosedVocabulary


def build_learner(config: ConfigDict, denoiser: denoisers.Denoiser) -> SftLearner:
    """The learner that updates the denoiser."""
    return SftLearner(
        denoiser=denoiser,
        optimizer=build_optimizer(config),
        masking=Masking(**dict(config.masking)),
        ema_decay=config.learner.ema_decay,
    )


def step_flops(config: ConfigDict, denoiser: denoisers.DenoiserConfig) -> float:
    """Matrix products of a training step, in operations."""
    length = config.data.gen_length
    forward = forward_flops(denoiser, 1, config.task.prompt_length + length, length)
    return 3.0 * config.data.batch_size * forward


def starting_bundle(config: ConfigDict, workdir: pathlib.Path) -> Bundle:
    """The denoiser that training starts from, with its tokenizer and task.

    Without `config.model.path` it has no parameters yet, see `random_params`; the tokenizer is then
    a word-level one over the task's own vocabulary, saved in the workdir.

    Raises:
        ConfigError: the task has no vocabulary of its own, or something does not fit.
    """
    if config.model.path is None:
        bundle = _bundle_from_scratch(config, workdir / "tokenizer")
    else:
        bundle = load_bundle(config)
    check_fits(bundle.denoiser.config, config.task.prompt_length, config.data.gen_length)
    return bundle


def _bundle_from_scratch(config: ConfigDict, directory: pathlib.Path) -> Bundle:
    task, placement, model = load_task(config), placements.from_config(config), config.model
    if not isinstance(task, ClosedVocabulary):
        raise ConfigError(
            "model.path",
            None,
            f"task {config.task.name!r} has no closed vocabulary to start a model from",
            "Give a pretrained model, with its tokenizer",
        )
    directory.mkdir(parents=True, exist_ok=True)
    # All processes write the same; none may read what another is about to replace.
    special = word_level.save_word_level(directory, task.vocabulary)
    placement.meet("tokenizer")
    blocks = model.attention_block
    shape = denoisers.DenoiserConfig(
        # Families whose files can hold these shapes.
        family="sdar" if blocks else "llada",
        qk_norm=bool(blocks),
        attention_block=blocks or None,
        vocab_size=special["vocab_size"],
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.hidden_size // model.num_heads,
        intermediate_size=model.intermediate_size,
        rope_theta=model.rope_theta,
        norm_eps=model.norm_eps,
        max_length=config.task.prompt_length + config.data.gen_length,
        tie_embeddings=False,
        mask_token_id=special["mask"],
        eos_token_id=special["eos"],
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
        dtype=model.dtype,
        param_dtype=model.param_dtype,
    )
    check_mesh(shape, placement.mesh)
    tokenizer = denoisers.load_tokenizer(directory)
    return Bundle(denoisers.Denoiser(shape), None, tokenizer, task, placement=placement)


def random_params(config: ConfigDict, bundle: Bundle) -> denoisers.Params:
    """Initial parameters of a denoiser that starts from scratch."""
    root, task = streams.root(config.seed), bundle.task

    def make() -> denoisers.Params:
        key = streams.stream(root, "init")
        params = denoisers.init_params(bundle.denoiser.config, key)
        if not (config.model.number_embeddings and isinstance(task, ClosedVocabulary)):
            return params
        words = [token for token in task.vocabulary if token.strip().isdecimal()]
        numbers = {bundle.tokenizer.encode(word)[0]: int(word) for word in words}
        return number_embeddings.with_values(params, numbers, streams.stream(root, "numbers"))

    return bundle.placement.make(make, rules=RULES)


def shapes_of(bundle: Bundle) -> Any:
    """Parameters of a starting bundle, or their shapes where it has none yet."""
    if bundle.params is None:
        return denoisers.abstract_params(bundle.denoiser.config)
    return bundle.params


def supervised_batches(config: ConfigDict, bundle: Bundle) -> data.BatchIterator:
    """Batches of prompts and target responses."""
    settings = data.BatchSettings(
        batch_size=config.data.batch_size,
        prompt_length=config.task.prompt_length,
        gen_length=config.data.gen_length,
        seed=config.seed,
        truncate=config.task.truncate_prompts,
    )
    return training_batches(bundle.task, bundle.tokenizer, settings, bundle.placement)


class Sft:
    """Trains a denoiser from random weights, or goes on from given ones.

    Args:
        config: see `jax_unmask.config.sft`; already validated.
        workdir: receives `tokenizer/` at the beginning if the weights are random, and at the end
            `model/`, unless `config.export` names another directory.
    """

    shown: tuple[str, ...] = ("loss", "masked_accuracy")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        self._config, self._bundle = config, starting_bundle(config, workdir)
        self._learner = build_learner(config, self._bundle.denoiser)

    def init(self) -> TrainState:
        bundle, key = self._bundle, streams.training_key(self._config.seed)
        params = bundle.params
        if params is None:
            params = random_params(self._config, bundle)
        self._bundle = dataclasses.replace(bundle, params=None)
        return bundle.placement.make(self._learner.init, params, key, rules=RULES, donate=(0,))

    def like(self) -> TrainState:
        bundle, self._bundle = self._bundle, dataclasses.replace(self._bundle, params=None)
        shapes, key = shapes_of(bundle), streams.training_key(self._config.seed)
        return bundle.placement.like(self._learner.init, shapes, key, rules=RULES)

    def data(self) -> data.BatchIterator:
        return supervised_batches(self._config, self._bundle)

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        placement, rows = self._bundle.placement, SftBatch(batch.prompts, batch.responses)
        if placement.mesh is not None:
            rows = placement.rows(rows)
        with timer.measure("update"), placement.active():
            return self._learner.step(state, rows)

    def flops(self, metrics: Mapping[str, float]) -> float:
        return step_flops(self._config, self._bundle.denoiser.config)

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        params = state.params if state.ema is None else state.ema
        bundle = dataclasses.replace(self._bundle, params=params)
        return export_denoiser(self._config, bundle, workdir)
