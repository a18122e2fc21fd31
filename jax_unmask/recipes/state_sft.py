"""Recipe "state_sft": supervised training in chosen states of the responses."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jax_unmask import denoisers, policies
from jax_unmask.denoisers.flops import forward_flops
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.state_sft import StateLearner
from jax_unmask.learners.states import (
    AttentionBlocks,
    Autoregressive,
    MaskRatios,
    RandomMasking,
    Responses,
    SemiAutoregressive,
    Surrogate,
    Threshold,
    TokenSettings,
    Trace,
    in_blocks,
)
from jax_unmask.recipes.base import Metrics, Work
from jax_unmask.recipes.sft import (
    DataSettings,
    ModelFromScratch,
    Sft,
    SupervisedSettings,
)
from jax_unmask.rollout import RolloutSettings, by_length, rollout, row_keys, trimmed
from jax_unmask.runtime import streams
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import ConfigError, setting, values_of
from jax_unmask.tasks.data import Batch


@dataclasses.dataclass(frozen=True)
class BucketedData(DataSettings):
    """The batches of given responses."""

    length_buckets: tuple[int, ...] = setting(
        (),
        "Shorter canvases to which a batch is cut where all of its responses fit, with their ends "
        "(and task.prompt_buckets for its prompts); every length compiles its own program.",
        ge=1,
    )


@dataclasses.dataclass(frozen=True)
class RematModel(ModelFromScratch):
    """The denoiser that is trained in chosen states."""

    remat: bool = setting(
        False, "Compute activations again in the backward pass instead of keeping them."
    )


@dataclasses.dataclass(frozen=True)
class StateMethod(MaskRatios, TokenSettings):
    """The states in which given responses are trained."""

    method: Literal["random", "semi_ar", "block", "trace", "ar"] = setting(
        "random",
        "random: masks over the whole response. semi_ar: a state per block, later blocks masked "
        "(full attention). block: masks in all blocks at once, each seeing the finished "
        "ones before it (block attention). trace: the states in which the denoiser that training "
        "starts from would write the response. ar: next tokens, causally (a cold start for "
        "families whose logits are shifted).",
    )
    block_length: int = setting(16, "Of semi_ar, and with block attention, in tokens.", ge=1)
    tokens_per_step: int = setting(2, "Of trace: tokens that a step writes.", ge=1)
    shrink: int = setting(1, "Of trace: steps that are merged into a state.", ge=1)
    draws: int = setting(1, "States per response of random and block.", ge=1)

    def build(self) -> Surrogate:
        """The states."""
        masks: Any = values_of(self, MaskRatios)
        if self.method == "semi_ar":
            return SemiAutoregressive(block_length=self.block_length, **masks)
        if self.method == "ar":
            return Autoregressive()
        if self.method == "trace":
            return Trace(shrink=self.shrink)
        threshold: Threshold = "block" if self.method == "block" else "row"
        return RandomMasking(draws=self.draws, mask_threshold=threshold, **masks)


@dataclasses.dataclass(frozen=True)
class StateSftSettings(SupervisedSettings):
    """Settings of `StateSft`."""

    model: RematModel = RematModel()
    data: BucketedData = BucketedData()
    learner: StateMethod = StateMethod(chunk_size=16)

    def check(self) -> None:
        super().check()
        buckets, learner = self.data.length_buckets, self.learner
        block = 1 if learner.method in ("random", "ar") else learner.block_length
        self.require(
            all(size % block == 0 for size in buckets),
            "data.length_buckets",
            f"it must hold multiples of {block}",
            "Give lengths below `data.gen_length`",
        )
        self.require(
            not buckets or learner.num_pads >= 0,
            "data.length_buckets",
            "`learner.num_pads` = -1 trains all padding, which shorter lengths would cut off",
            "Set `learner.num_pads` = 1 (the end of a text), or leave the lengths out",
        )

    @property
    def rows_at_once(self) -> int:
        return self.rows if self.learner.method == "trace" else 0

    @property
    def states_at_once(self) -> int:
        return self.learner.chunk_size

    def check_spread(self, placement: Placement) -> None:
        super().check_spread(placement)
        size = self.learner.chunk_size
        self.require_spread(placement, "learner.chunk_size", size, "its states")


def build_learner(config: StateSftSettings, denoiser: denoisers.Denoiser) -> StateLearner:
    """The learner of the denoiser.

    Raises:
        ConfigError: the method does not fit the denoiser's attention.
    """
    learner, family = config.learner, denoiser.config.family
    denoiser = denoiser.clone(remat=config.model.remat)
    has_blocks = denoiser.config.attention_block is not None
    if learner.method != "trace" and has_blocks != (learner.method == "block"):
        raise ConfigError(
            "learner.method",
            learner.method,
            f"the denoiser, of family {family!r}, has "
            + ("block" if has_blocks else "full")
            + " attention",
            "Choose 'block' or 'trace'"
            if has_blocks
            else "Choose 'random', 'semi_ar', 'trace' or 'ar'",
        )
    if learner.method == "ar":
        if not denoiser.config.logits_shift:
            raise ConfigError(
                "learner.method",
                learner.method,
                f"logits of family {family!r} are not shifted, so a causal text would show each "
                "token to itself",
                "Choose another method, or a model of family 'dream'",
            )
        causal = dataclasses.replace(denoiser.config, attention_block=1)
        denoiser = denoiser.clone(config=causal)
    return StateLearner(
        denoiser=denoiser,
        optimizer=config.optimizer.build(config.train.steps),
        surrogate=learner.build(),
        blocks=AttentionBlocks(learner.block_length) if has_blocks else None,
        full_length=config.data.gen_length,
        **values_of(learner, TokenSettings),
    )


class StateSft(Sft):
    """Trains a denoiser on given responses in chosen states (arXiv 2509.06949, sections 3 and 5.2).

    With `learner.method = "trace"` these are the states that the denoiser, as it was before
    training, would visit on its way to the response.

    Args:
        config: the settings.
        workdir: as of `Sft`.
    """

    metrics = (
        *("loss", "grad_norm", "trained_tokens", "states", "skipped"),
        *("prompt_length", "canvas_length"),
    )
    shown = ("loss", "trained_tokens")
    defaults = StateSftSettings()
    build_learner = staticmethod(build_learner)

    def __init__(self, config: StateSftSettings, workdir: pathlib.Path) -> None:
        super().__init__(config, workdir)
        denoiser = in_blocks(self._bundle.denoiser, self._learner.blocks)
        self._bundle = dataclasses.replace(self._bundle, denoiser=denoiser)

    @classmethod
    def keeps_start(cls, config: StateSftSettings) -> bool:
        return config.learner.method == "trace"

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        placement = self._bundle.placement
        batch = self._fitted(batch)
        steps: Any = np.zeros(batch.responses.shape, np.int32)
        if self.keeps_start(self._config):
            with timer.measure("rollout"):
                steps = placement.fetch(self._steps(batch))
        written: Any = batch.responses
        responses = Responses(batch.prompts, written, steps)
        with timer.measure("update"), placement.active():
            # Small enough to be everywhere: a device takes what it works on out of all rows.
            everywhere = placement.everywhere(placement.gather(responses))
            state, metrics = self._learner.step(state, everywhere)
        return state, metrics | {
            "prompt_length": batch.prompts.tokens.shape[1],
            "canvas_length": batch.responses.shape[1],
        }

    def flops(self, metrics: Mapping[str, float]) -> float:
        # Rollouts that only find the states of given responses are no part of it.
        canvas, denoiser = int(metrics["canvas_length"]), self._bundle.denoiser.config
        length = int(metrics["prompt_length"]) + canvas
        return 3.0 * metrics["states"] * forward_flops(denoiser, 1, length, canvas)

    def _fitted(self, batch: Batch) -> Batch:
        """The batch, cut to the shortest lengths that hold its prompts and its responses.

        A response is its text, and the padding after it that is trained: its end at least.
        """
        config, placement = self._config, self._bundle.placement
        prompts = trimmed(batch.prompts, config.task.prompt_buckets, placement)
        responses, buckets = batch.responses, config.data.length_buckets
        if buckets:
            is_text = responses != self._bundle.tokenizer.eos_id
            behind = np.cumsum(is_text[:, ::-1], axis=1)[:, ::-1] == 0
            ends = max(config.learner.num_pads, 1)
            wanted = ~behind | (np.cumsum(behind, axis=1) <= ends)
            width = by_length(wanted, buckets)[-1][0]
            width = int(placement.gather(np.asarray([width])).max())
            responses = responses[:, :width]
        return dataclasses.replace(batch, prompts=prompts, responses=responses)

    def _steps(self, batch: Batch) -> Any:
        """The steps in which the denoiser of before training would write the responses.

        Static decoding of the most probable target tokens (arXiv 2509.06949, appendix B.1). That
        denoiser is frozen, so what a step of training learns depends on nothing but its batch.
        """
        learner, bundle, length = self._config.learner, self._bundle, batch.responses.shape[1]
        placement = bundle.placement
        has_blocks = bundle.denoiser.config.attention_block is not None
        targets: Any = batch.responses
        prompts = dataclasses.replace(batch.prompts, targets=targets)
        count = len(batch.responses)
        identities = placement.feed * count + np.arange(count)
        key = streams.stream(streams.root(self._config.seed), "rollout")
        with placement.active():
            trajectory = rollout(
                bundle.denoiser,
                bundle.params,
                policies.TopConfidence(),
                policies.TopConfidence().params(tokens_per_step=learner.tokens_per_step),
                placement.rows(prompts),
                row_keys(key, placement.rows(identities)),
                RolloutSettings(length, learner.block_length if has_blocks else length),
            )
        return trajectory.step_map

    @classmethod
    def batch_shapes(cls, placement: Placement, prompts: Any, canvas: Any) -> Any:
        return placement.everywhere(Responses(prompts, canvas, canvas))

    @classmethod
    def work(
        cls, config: StateSftSettings, shape: denoisers.DenoiserConfig, nfe: int | None = None
    ) -> Work:
        del nfe
        length = config.data.gen_length
        states = build_learner(config, denoisers.Denoiser(shape)).num_states(length)
        forward = forward_flops(shape, 1, config.task.prompt_length + length, length)
        return Work(0, 0.0, 3.0 * config.rows * states * forward)
