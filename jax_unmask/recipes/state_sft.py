"""Recipe "state_sft": supervised training in chosen states of the responses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_unmask import denoisers
from jax_unmask.evaluation.bundle import Bundle
from jax_unmask.learners.state import TrainState
from jax_unmask.learners.surrogates import (
    Autoregressive,
    RandomMasking,
    SemiAutoregressive,
    Surrogate,
    Threshold,
)
from jax_unmask.learners.trace import Responses
from jax_unmask.learners.trace_forward import AttentionBlocks
from jax_unmask.learners.tracerl import TraceLearner
from jax_unmask.recipes.base import Metrics, build_optimizer
from jax_unmask.recipes.sft import Sft
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.progress import Timer

METHODS = ("random", "semi_ar", "block", "ar")
# Of the metrics of reinforcement learning, those that mean something here.
_METRICS = ("loss", "grad_norm", "trained_tokens", "states")


class StateSft(Sft):
    """Trains a denoiser on given responses (arXiv 2509.06949, sections 3 and 5.2).

    The learner is that of `tracerl`: with every advantage 1, no KL penalty and one step per batch,
    its gradient is that of the log-likelihood of the trained tokens in their states.

    Args:
        config: see `jax_unmask.config.state_sft`; already validated.
        workdir: as of `Sft`.
    """

    shown: tuple[str, ...] = ("loss", "trained_tokens")

    def _surrogate(self) -> Surrogate:
        learner = self._config.learner
        masks = {"low": learner.mask_low, "high": learner.mask_high}
        if learner.method == "semi_ar":
            return SemiAutoregressive(block_length=learner.block_length, **masks)
        if learner.method == "ar":
            return Autoregressive()
        threshold: Threshold = "block" if learner.method == "block" else "row"
        return RandomMasking(draws=learner.draws, threshold=threshold, **masks)

    def _build_learner(self) -> TraceLearner:
        config, learner = self._config, self._config.learner
        denoiser, blocks = self._denoiser.clone(remat=config.model.remat), None
        has_blocks = denoiser.config.attention_block is not None
        if has_blocks != (learner.method == "block"):
            raise ConfigError(
                "learner.method",
                learner.method,
                f"the denoiser, of family {denoiser.config.family!r}, has "
                + ("block" if has_blocks else "full")
                + " attention",
                "Choose 'block'" if has_blocks else "Choose 'random', 'semi_ar' or 'ar'",
            )
        if has_blocks:
            blocks = AttentionBlocks(learner.block_length)
        if learner.method == "ar":
            if not denoiser.config.logits_shift:
                raise ConfigError(
                    "learner.method",
                    learner.method,
                    f"logits of family {denoiser.config.family!r} are not shifted, so a causal "
                    "text would show each token to itself",
                    "Choose another method, or a model of family 'dream'",
                )
            causal = dataclasses.replace(denoiser.config, attention_block=1)
            denoiser = denoiser.clone(config=causal)
        return TraceLearner(
            denoiser=denoiser,
            optimizer=build_optimizer(config),
            surrogate=self._surrogate(),
            blocks=blocks,
            beta=0.0,
            normaliser=learner.normaliser,
            num_pads=None if learner.num_pads < 0 else learner.num_pads,
            chunk_size=learner.chunk_size,
            positions_per_chunk=learner.positions_per_chunk,
        )

    def init(self) -> TrainState:
        return self._learner.init(self._params, jax.random.key(self._config.seed + 1))

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        rows = len(batch.responses)
        with timer.measure("update"):
            responses = Responses(
                prompts=jax.tree.map(jnp.asarray, batch.prompts),
                tokens=jnp.asarray(batch.responses),
                step_map=jnp.zeros(batch.responses.shape, jnp.int32),
            )
            state, found = self._learner.update(
                state, responses, jnp.ones(rows), jnp.ones(rows, bool)
            )
        # The loss of reinforcement is -1 per token at a ratio of 1; what falls is the surprise.
        return state, {name: found[name] for name in _METRICS} | {"loss": found["surprise"]}

    def finish(self, state: TrainState, workdir: Any) -> None:
        params = state.params["denoiser"]
        denoisers.save_pretrained(self._directory, self._denoiser, params, self._tokenizer)
        if self._config.eval.after_training:
            from jax_unmask.evaluation import sweep  # Draws plots; training needs none of it.

            bundle = Bundle(self._denoiser, params, self._tokenizer, self._task)
            sweep.run(self._config, bundle, workdir)
