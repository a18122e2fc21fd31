"""Recipe "sft": a denoiser learns to fill in masked responses."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from jax_unmask import denoisers
from jax_unmask.denoisers import number_embeddings, word_level
from jax_unmask.denoisers.sharding import RULES, check_mesh
from jax_unmask.environment.bundle import Bundle, load_bundle, load_task
from jax_unmask.learners.state import TrainState
from jax_unmask.learners.supervised.corruption import Masking
from jax_unmask.learners.supervised.sft import SftBatch, SftLearner
from jax_unmask.recipes.base import (
    Metrics,
    build_optimizer,
    check_fits,
    row_flops,
    training_batches,
)
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks import data
from jax_unmask.tasks.generated import ClosedVocabulary


def build_learner(config: ConfigDict, denoiser: denoisers.Denoiser) -> SftLearner:
    """What updates the denoiser."""
    return SftLearner(
        denoiser=denoiser,
        optimizer=build_optimizer(config),
        masking=Masking(**dict(config.masking)),
        ema_decay=config.learner.ema_decay,
    )


class Sft:
    """Trains a denoiser from random weights, or goes on from given ones.

    From random weights the tokenizer is a word-level one over the task's own vocabulary; the
    result is a model in LLaDA's Hugging Face format.

    Args:
        config: see `jax_unmask.config.sft`; already validated.
        workdir: receives `tokenizer/` at the beginning if the weights are random, and at the end
            `model/`, unless `config.export` names another directory.
    """

    shown: tuple[str, ...] = ("loss", "masked_accuracy")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        self._config = config
        self._directory = pathlib.Path(config.export or workdir / "model")
        if config.model.path is None:
            self._placement = placements.from_config(config)
            self._task = load_task(config)
            self._denoiser, self._tokenizer = self._from_scratch(workdir / "tokenizer")
            check_mesh(self._denoiser.config, self._placement.mesh)
            self._params = self._placement.make(self._initial_params, rules=RULES)
        else:
            bundle = load_bundle(config)
            self._placement = bundle.placement
            self._task, self._tokenizer = bundle.task, bundle.tokenizer
            self._denoiser, self._params = bundle.denoiser, bundle.params
        check_fits(self._denoiser.config, config.task.prompt_length, config.data.gen_length)
        self._learner = self._build_learner()

    def _build_learner(self) -> Any:
        return build_learner(self._config, self._denoiser)

    def _from_scratch(
        self, directory: pathlib.Path
    ) -> tuple[denoisers.Denoiser, denoisers.Tokenizer]:
        config, model = self._config, self._config.model
        if not isinstance(self._task, ClosedVocabulary):
            raise ConfigError(
                "model.path",
                None,
                f"task {config.task.name!r} has no closed vocabulary to start a model from",
                "Give a pretrained model, with its tokenizer",
            )
        directory.mkdir(parents=True, exist_ok=True)
        # All processes write the same; none may read what another is about to replace.
        special = word_level.save_word_level(directory, self._task.vocabulary)
        self._placement.meet("tokenizer")
        blocks = model.attention_block
        denoiser_config = denoisers.DenoiserConfig(
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
        return denoisers.Denoiser(denoiser_config), denoisers.load_tokenizer(directory)

    def _initial_params(self) -> denoisers.Params:
        config = self._config
        key = jax.random.key(config.seed)
        params = denoisers.init_params(self._denoiser.config, key)
        if not (config.model.number_embeddings and isinstance(self._task, ClosedVocabulary)):
            return params
        tokens = [token for token in self._task.vocabulary if token.strip().isdecimal()]
        numbers = {self._tokenizer.encode(token)[0]: int(token) for token in tokens}
        return number_embeddings.with_values(params, numbers, jax.random.fold_in(key, 1))

    def init(self) -> TrainState:
        key = jax.random.key(self._config.seed + 1)
        return self._placement.make(self._learner.init, self._params, key, rules=RULES)

    def data(self) -> data.BatchIterator:
        config = self._config
        settings = data.BatchSettings(
            batch_size=config.data.batch_size,
            prompt_length=config.task.prompt_length,
            gen_length=config.data.gen_length,
            seed=config.seed,
            truncate=config.task.truncate_prompts,
        )
        return training_batches(self._task, self._tokenizer, settings, self._placement)

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        rows = SftBatch(batch.prompts, batch.responses)
        if self._placement.mesh is not None:
            rows = self._placement.rows(rows)
        with timer.measure("update"), self._placement.active():
            return self._learner.step(state, rows)

    def _trained(self, state: TrainState) -> denoisers.Params:
        """The denoiser's parameters, as they are exported."""
        return state.params if state.ema is None else state.ema

    def flops(self, metrics: Mapping[str, float]) -> float:
        return 3.0 * self._config.data.batch_size * row_flops(self._config, self._denoiser.config)

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        params = self._trained(state)
        denoisers.save_pretrained(self._directory, self._denoiser, params, self._tokenizer)
        return self._bundle(params)

    def _bundle(self, params: Any) -> Bundle:
        """What was trained, for evaluation."""
        parts = (self._denoiser, params, self._tokenizer, self._task)
        return Bundle(*parts, placement=self._placement)
