"""Recipe "state_sft": supervised training in chosen states of the responses."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jax_unmask import denoisers, policies
from jax_unmask.denoisers.flops import forward_flops
from jax_unmask.learners.state import TrainState
from jax_unmask.learners.states.forward import AttentionBlocks, in_blocks
from jax_unmask.learners.states.responses import Responses
from jax_unmask.learners.states.surrogates import (
    Autoregressive,
    RandomMasking,
    SemiAutoregressive,
    Surrogate,
    Threshold,
    Trace,
)
from jax_unmask.learners.tracerl import TraceLearner
from jax_unmask.recipes.base import Metrics, build_optimizer
from jax_unmask.recipes.sft import Sft
from jax_unmask.rollout import RolloutSettings, by_length, rollout, row_keys, trimmed
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks.data import Batch

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

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        super().__init__(config, workdir)
        self._denoiser = in_blocks(self._denoiser, self._learner.blocks)

    def _surrogate(self) -> Surrogate:
        learner = self._config.learner
        masks = {"mask_low": learner.mask_low, "mask_high": learner.mask_high}
        if learner.method == "semi_ar":
            return SemiAutoregressive(block_length=learner.block_length, **masks)
        if learner.method == "ar":
            return Autoregressive()
        if learner.method == "trace":
            return Trace(shrink=learner.shrink)
        threshold: Threshold = "block" if learner.method == "block" else "row"
        return RandomMasking(draws=learner.draws, mask_threshold=threshold, **masks)

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
            num_pads=learner.num_pads,
            chunk_size=learner.chunk_size,
            positions_per_chunk=learner.positions_per_chunk,
        )

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        placement, learner = self._placement, self._config.learner
        batch = self._fitted(batch)
        prompts, targets = placement.gather((batch.prompts, batch.responses))
        # A token weighs the same whatever its batch was cut to.
        is_by_length = learner.normaliser == "length"
        weight = targets.shape[1] / self._config.data.gen_length if is_by_length else 1.0
        no_steps: Any = np.zeros(targets.shape, np.int32)
        # Small enough to be everywhere: a device takes what it works on out of all rows.
        responses, rewards, kept = placement.everywhere(
            (
                Responses(prompts, targets, no_steps),
                np.full(len(targets), weight, np.float32),
                np.ones(len(targets), bool),
            )
        )
        if learner.method == "trace":
            with timer.measure("rollout"):
                step_map = placement.everywhere(self._steps(batch))
                responses = dataclasses.replace(responses, step_map=step_map)
        with timer.measure("update"), placement.active():
            state, found = self._learner.update(state, responses, rewards, kept)
        # The loss of reinforcement is -1 per token at a ratio of 1; what falls is the surprise.
        return state, {name: found[name] for name in _METRICS} | {
            "loss": found["surprise"],
            "prompt_length": prompts.tokens.shape[1],
            "canvas_length": targets.shape[1],
        }

    def flops(self, metrics: Mapping[str, float]) -> float:
        # Rollouts that only find the states of given responses are no part of it.
        canvas = int(metrics["canvas_length"])
        length = int(metrics["prompt_length"]) + canvas
        return 3.0 * metrics["states"] * forward_flops(self._denoiser.config, 1, length, canvas)

    def _fitted(self, batch: Batch) -> Batch:
        """The batch, cut to the shortest lengths that hold its prompts and its responses.

        A response is its text, and the padding behind it that is trained: its end at least.
        """
        config, placement = self._config, self._placement
        prompts = trimmed(batch.prompts, config.task.prompt_buckets, placement)
        responses, buckets = batch.responses, config.data.length_buckets
        if buckets:
            is_text = responses != self._tokenizer.eos_id
            behind = np.cumsum(is_text[:, ::-1], axis=1)[:, ::-1] == 0
            ends = max(config.learner.num_pads, 1)
            wanted = ~behind | (np.cumsum(behind, axis=1) <= ends)
            width = by_length(wanted, buckets)[-1][0]
            width = int(placement.gather(np.asarray([width])).max())
            responses = responses[:, :width]
        return dataclasses.replace(batch, prompts=prompts, responses=responses)

    def _steps(self, batch: Any) -> Any:
        """The steps in which the denoiser that training started from would write the responses.

        Static decoding of the most probable target tokens (arXiv 2509.06949, appendix B.1). The
        denoiser is frozen, so what a step of training learns depends on nothing but its batch.
        """
        learner, placement, length = self._config.learner, self._placement, batch.responses.shape[1]
        has_blocks = self._denoiser.config.attention_block is not None
        prompts = dataclasses.replace(batch.prompts, targets=batch.responses)
        count = len(batch.responses)
        identities = placement.feed * count + np.arange(count)
        with placement.active():
            trajectory = rollout(
                self._denoiser,
                self._params,
                policies.TopConfidence(),
                policies.TopConfidence().params(tokens_per_step=learner.tokens_per_step),
                placement.rows(prompts),
                row_keys(jax.random.key(0), placement.rows(identities)),
                RolloutSettings(length, learner.block_length if has_blocks else length),
            )
        return placement.fetch_all(trajectory.step_map)

    def _trained(self, state: TrainState) -> denoisers.Params:
        return state.params["denoiser"]
