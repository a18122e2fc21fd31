"""Recipe "state_sft": supervised training in chosen states of the responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jax_unmask import denoisers, policies
from jax_unmask.learners.state import TrainState
from jax_unmask.learners.surrogates import (
    Autoregressive,
    RandomMasking,
    SemiAutoregressive,
    Surrogate,
    Threshold,
    Trace,
)
from jax_unmask.learners.trace import Responses
from jax_unmask.learners.trace_forward import AttentionBlocks
from jax_unmask.learners.tracerl import TraceLearner
from jax_unmask.recipes.base import Metrics, build_optimizer, row_flops
from jax_unmask.recipes.sft import Sft
from jax_unmask.rollout import RolloutSettings, rollout, row_keys
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.progress import Timer

METHODS = ("random", "semi_ar", "block", "trace", "ar")
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
        if learner.method == "trace":
            return Trace(shrink=learner.shrink)
        threshold: Threshold = "block" if learner.method == "block" else "row"
        return RandomMasking(draws=learner.draws, threshold=threshold, **masks)

    def _build_learner(self) -> TraceLearner:
        config, learner = self._config, self._config.learner
        denoiser, blocks = self._denoiser.clone(remat=config.model.remat), None
        has_blocks = denoiser.config.attention_block is not None
        if learner.method != "trace" and has_blocks != (learner.method == "block"):
            raise ConfigError(
                "learner.method",
                learner.method,
                f"the denoiser, of family {denoiser.config.family!r}, has "
                + ("block" if has_blocks else "full")
                + " attention",
                "Choose 'block' or 'trace'"
                if has_blocks
                else "Choose 'random', 'semi_ar', 'trace' or 'ar'",
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
        responses = Responses(
            prompts=jax.tree.map(jnp.asarray, batch.prompts),
            tokens=jnp.asarray(batch.responses),
            step_map=jnp.zeros(batch.responses.shape, jnp.int32),
        )
        if self._config.learner.method == "trace":
            with timer.measure("rollout"):
                responses = dataclasses.replace(responses, step_map=self._steps(responses))
        with timer.measure("update"):
            state, found = self._learner.update(
                state, responses, jnp.ones(rows), jnp.ones(rows, bool)
            )
        # The loss of reinforcement is -1 per token at a ratio of 1; what falls is the surprise.
        return state, {name: found[name] for name in _METRICS} | {"loss": found["surprise"]}

    def flops(self, metrics: Mapping[str, float]) -> float:
        # Rollouts that only find the states of given responses are no part of it.
        return 3.0 * metrics["states"] * row_flops(self._config, self._denoiser.config)

    def _steps(self, responses: Responses) -> Any:
        """The steps in which the denoiser that training started from would write the responses.

        Static decoding of the most probable target tokens (arXiv 2509.06949, appendix B.1). The
        denoiser is frozen, so what a step of training learns depends on nothing but its batch.
        """
        learner, length = self._config.learner, responses.tokens.shape[1]
        has_blocks = self._denoiser.config.attention_block is not None
        trajectory = rollout(
            self._denoiser,
            self._params,
            policies.TopConfidence(),
            policies.TopConfidence().params(tokens_per_step=learner.tokens_per_step),
            dataclasses.replace(responses.prompts, targets=responses.tokens),
            row_keys(jax.random.key(0), len(responses.tokens)),
            RolloutSettings(length, learner.block_length if has_blocks else length),
        )
        return trajectory.step_map

    def _trained(self, state: TrainState) -> denoisers.Params:
        return state.params["denoiser"]
