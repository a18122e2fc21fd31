"""Recipe "state_sft": supervised training in chosen states of the responses."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jax_unmask import denoisers, policies
from jax_unmask.denoisers.flops import forward_flops
from jax_unmask.environment.bundle import Bundle
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.packing import Packing, pack
from jax_unmask.learners.state_sft import StateLearner
from jax_unmask.learners.states import AttentionBlocks, Responses, TokenSettings, in_blocks
from jax_unmask.learners.surrogates import (
    Autoregressive,
    MaskRatios,
    RandomMasking,
    SemiAutoregressive,
    Surrogate,
    Threshold,
    Trace,
)
from jax_unmask.recipes import base, sft
from jax_unmask.rollout import RolloutSettings, by_length, rollout, row_keys, trimmed
from jax_unmask.runtime import streams
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import ConfigError, SettingError, setting, setting_of, values_of
from jax_unmask.tasks.data import Batch

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BucketedData(sft.DataSettings):
    """The batches of given responses."""

    length_buckets: tuple[int, ...] = setting(
        (),
        "Shorter canvases to which a batch is cut where all of its responses fit, with their ends "
        "(and task.prompt_buckets for its prompts); every length compiles its own program. With "
        "pack_length each response takes the shortest that fits it.",
        ge=1,
    )
    pack_length: int = setting(
        0,
        "Tokens of a row into which several examples are packed, prompts and canvases; attention "
        "does not cross examples, and the loss is the same. 0 for a row each.",
        ge=0,
        le=2**20,
    )


@dataclasses.dataclass(frozen=True)
class RematModel(sft.ModelFromScratch):
    """The denoiser that is trained in chosen states."""

    remat: bool = setting_of(denoisers.Denoiser, "remat")


@dataclasses.dataclass(frozen=True)
class StateMethod(MaskRatios, TokenSettings):
    """The states in which given responses are trained."""

    method: Literal["random", "semi_ar", "block", "trace", "ar"] = setting(
        "random",
        "random: masks over the whole response. semi_ar: a state per block, later blocks masked "
        "(full attention). block: masks in all blocks at once, each seeing the finished "
        "ones before it (block attention; a cold start for full attention, arXiv 2512.15745). "
        "trace: the states in which the response was written, where the data say so (step_map), "
        "or else those in which the denoiser that training starts from would write it. ar: next "
        "tokens, causally (a cold start for families whose logits are shifted).",
    )
    block_length: int = setting(16, "Of semi_ar, and with block attention, in tokens.", ge=1)
    tokens_per_step: int = setting(2, "Of trace: tokens that a step writes.", ge=1)
    order: Literal["targets", "margin"] = setting(
        "targets",
        "Of trace: what a step writes first. targets: where the given token is the most probable, "
        "as published. margin: where the denoiser is surest, of whichever token.",
    )
    shrink: int = setting_of(Trace, "shrink")
    draws: int = setting_of(RandomMasking, "draws", default=1)

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
class StateSftSettings(sft.SupervisedSettings):
    """Settings of `StateSft`."""

    rollout_key: ClassVar[str] = "data.batch_size"
    update_key: ClassVar[str] = "learner.chunk_size"

    model: RematModel = RematModel()
    data: BucketedData = BucketedData()
    learner: StateMethod = StateMethod(chunk_size=16)

    training_only: ClassVar[tuple[str, ...]] = (
        *sft.SupervisedSettings.training_only,
        *("data.length_buckets", "data.pack_length"),
    )

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
        if self.data.pack_length:
            self._check_packing(self.length)

    def _check_packing(self, longest: int) -> None:
        data, learner = self.data, self.learner
        self.require(
            data.pack_length >= longest,
            "data.pack_length",
            f"an example may have {longest} tokens (`task.prompt_length` + `data.gen_length`)",
            f"Give at least {longest}, or 0 for a row each",
        )
        self.require(
            learner.num_pads >= 0,
            "data.pack_length",
            "`learner.num_pads` = -1 trains all padding, which packed rows leave out",
            "Set `learner.num_pads` = 1 (the end of a text), or 0",
        )

    @property
    def writes_traces(self) -> bool:
        """Whether the denoiser that training starts from says in which states to train."""
        return self.learner.method == "trace"

    @property
    def rows_at_once(self) -> int:
        return self.rows if self.writes_traces else 0

    @property
    def states_at_once(self) -> int:
        # Of the usual length; a packed row is as long as several.
        usual = self.length
        return self.learner.chunk_size * max(1, -(-self.data.pack_length // usual))

    def check_spread(self, placement: Placement) -> None:
        super().check_spread(placement)
        size = self.learner.chunk_size
        self.require_spread(placement, self.update_key, size, "its states")


def build_learner(config: StateSftSettings, denoiser: denoisers.Denoiser) -> StateLearner:
    """The learner of the denoiser.

    Raises:
        ConfigError: method or block length do not fit the denoiser's attention.
    """
    learner, family = config.learner, denoiser.config.family
    denoiser = denoiser.clone(remat=config.model.remat)
    has_blocks = denoiser.config.attention_block is not None
    if has_blocks and learner.method not in ("block", "trace"):
        raise ConfigError(
            "learner.method",
            learner.method,
            f"the denoiser, of family {family!r}, has block attention",
            "Choose 'block' or 'trace'",
        )
    if has_blocks and learner.method == "trace":  # Rollouts tell the steps.
        try:
            config.require_divides("learner.block_length", "data.gen_length")
        except SettingError as error:
            raise error.within("") from error
    if learner.method == "block" and not has_blocks:
        if denoiser.config.logits_shift:
            raise ConfigError(
                "learner.method",
                learner.method,
                f"the denoiser, of family {family!r}, has full attention and shifted logits",
                "Choose 'ar', 'random', 'semi_ar' or 'trace'",
            )
        narrow = dataclasses.replace(denoiser.config, attention_block=learner.block_length)
        denoiser, has_blocks = denoiser.clone(config=narrow), True
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


class StateSft(sft.Supervised):
    """Trains a denoiser on given responses in chosen states (arXiv 2509.06949, sections 3 and 5.2).

    With `learner.method = "trace"` these are the states that the denoiser, as it was before
    training, would visit on its way to the response, unless the data have the steps themselves.
    """

    metrics = (
        *("loss", "grad_norm", "trained_tokens", "states", "forwards", "skipped"),
        *("prompt_length", "canvas_length", "filled"),
    )
    shown = ("loss", "trained_tokens")
    defaults = StateSftSettings()

    @classmethod
    def check(cls, config: StateSftSettings, workdir: pathlib.Path) -> Bundle:
        return sft.check_supervised(config, workdir, build_learner)

    def __init__(self, config: StateSftSettings, workdir: pathlib.Path) -> None:
        super().__init__(config, workdir, build_learner, keeps_start=config.writes_traces)
        if self._bundle.denoiser.config.attention_block is not None:
            denoiser = in_blocks(self._bundle.denoiser, self._learner.blocks)
            self._bundle = dataclasses.replace(self._bundle, denoiser=denoiser)
        elif config.learner.method == "block":
            logger.warning(
                "learner.method = 'block' of a denoiser with full attention is a cold start: train "
                "it with full attention afterwards, as rollouts use it"
            )

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, base.Metrics]:
        placement = self._bundle.placement
        batch = self._fitted(batch)
        steps: Any = np.zeros(batch.responses.shape, np.int32)
        if self._keeps_start:
            given = np.full(batch.responses.shape, -1) if batch.steps is None else batch.steps
            unknown = given[:, :1] < 0
            # All processes take part in a rollout.
            if placement.gather(unknown).any():
                with timer.measure("rollout"):
                    given = np.where(unknown, placement.fetch(self._steps(batch)), given)
            steps = given.astype(np.int32)
        written: Any = batch.responses
        responses = Responses(batch.prompts, written, steps)
        with timer.measure("update"), placement.active():
            # Small enough to be everywhere: a device takes what it works on out of all rows.
            responses = placement.gather(responses)
            first, last = self._places(responses)
            real, width = int((last - first).sum()), responses.tokens.shape[1]
            width += responses.prompts.tokens.shape[1]
            packing = None
            if self._config.data.pack_length:
                width = self._config.data.pack_length
                packing = pack(first, last, width)
                used = int((packing.segment >= 0).any(axis=1).sum())
            else:
                used = len(first)
            everywhere = placement.everywhere((responses, packing))
            state, metrics = self._learner.step(state, *everywhere)
        return state, metrics | {
            "prompt_length": batch.prompts.tokens.shape[1],
            "canvas_length": batch.responses.shape[1],
            "filled": real / (used * width),
        }

    def flops(self, metrics: Mapping[str, float]) -> float:
        # Rollouts that only find the states of given responses are no part of it.
        canvas, denoiser = int(metrics["canvas_length"]), self._bundle.denoiser.config
        length = int(metrics["prompt_length"]) + canvas
        if self._config.data.pack_length:
            canvas = length = self._config.data.pack_length
        return 3.0 * metrics["forwards"] * forward_flops(denoiser, length, canvas)

    def _places(self, responses: Responses) -> tuple[np.ndarray, np.ndarray]:
        """First position and end of prompt and canvas of each example in the padded text.

        A canvas is the shortest of the lengths that hold a response and its end; with block or
        causal attention, where nothing depends on what is later, it ends with the block of that
        end, or with it.
        """
        config, length = self._config, responses.tokens.shape[1]
        mask = np.asarray(responses.prompts.mask)
        prompt_length, prompts = mask.shape[1], mask.sum(axis=1)
        needed = self._wanted(np.asarray(responses.tokens)).sum(axis=1)
        if self._learner.blocks is not None or config.learner.method == "ar":
            block = 1 if self._learner.blocks is None else self._learner.blocks.length
            canvas = -(-(prompts + needed) // block) * block - prompts
        else:
            ladder = np.array(sorted({*config.data.length_buckets, length}))
            canvas = ladder[np.searchsorted(ladder, needed)]
        return prompt_length - prompts, prompt_length + np.minimum(canvas, length)

    def _wanted(self, responses: Any) -> Any:
        """The positions of responses that are trained: texts, their ends and other padding."""
        is_text = responses != self._bundle.tokenizer.eos_id
        behind = np.cumsum(is_text[:, ::-1], axis=1)[:, ::-1] == 0
        ends = max(self._config.learner.num_pads, 1)
        return ~behind | (np.cumsum(behind, axis=1) <= ends)

    def _fitted(self, batch: Batch) -> Batch:
        """The batch, cut to the shortest lengths that hold its prompts and its responses.

        A response is its text, and the padding after it that is trained: its end at least.
        """
        config, placement = self._config, self._bundle.placement
        prompts = trimmed(batch.prompts, config.task.prompt_buckets, placement)
        responses, buckets = batch.responses, config.data.length_buckets
        if buckets:
            width = by_length(self._wanted(responses), buckets)[-1][0]
            width = int(placement.gather(np.asarray([width])).max())
            responses = responses[:, :width]
        steps = None if batch.steps is None else batch.steps[:, : responses.shape[1]]
        return dataclasses.replace(batch, prompts=prompts, responses=responses, steps=steps)

    def _steps(self, batch: Batch) -> Any:
        """The steps in which the denoiser of before training would write the responses.

        Static decoding of the most probable target tokens (arXiv 2509.06949, appendix B.1), or by
        `learner.order`. That denoiser is frozen, so what a step of training learns depends on
        nothing but its batch.
        """
        learner, bundle, length = self._config.learner, self._bundle, batch.responses.shape[1]
        placement = bundle.placement
        has_blocks = bundle.denoiser.config.attention_block is not None
        targets: Any = batch.responses
        prompts = dataclasses.replace(batch.prompts, targets=targets)
        count = len(batch.responses)
        identities = placement.feed * count + np.arange(count)
        key = streams.stream(streams.root(self._config.seed), "rollout")
        # Confidence is that of the targets, which are the candidates.
        policy = policies.Margin() if learner.order == "margin" else policies.TopConfidence()
        with placement.active():
            trajectory = rollout(
                bundle.denoiser,
                bundle.params,
                policy,
                policy.params(tokens_per_step=learner.tokens_per_step),
                placement.rows(prompts),
                row_keys(key, placement.rows(identities)),
                RolloutSettings(length, learner.block_length if has_blocks else length),
            )
        return trajectory.step_map

    @classmethod
    def blueprint(
        cls, config: StateSftSettings, shape: denoisers.DenoiserConfig, placement: Placement
    ) -> base.Blueprint:
        packing = None
        if width := config.data.pack_length:
            places: Any = jax.ShapeDtypeStruct((config.rows, width), jnp.int32)
            # About as many examples in a row as fit at half of their longest.
            examples: Any = jax.ShapeDtypeStruct(
                (config.rows, 2 * width // config.length), jnp.int32
            )
            packing = Packing(examples, places, places)
        prompts, canvas = sft.batch_shapes(config, placement)
        batch = placement.everywhere((Responses(prompts, canvas, canvas), packing))
        learner, keeps = build_learner(config, denoisers.Denoiser(shape)), config.writes_traces
        return sft.supervised_blueprint(shape, placement, learner, batch, keeps_start=keeps)

    @classmethod
    def work(
        cls, config: StateSftSettings, shape: denoisers.DenoiserConfig, nfe: int | None = None
    ) -> base.Work:
        del nfe
        learner = build_learner(config, denoisers.Denoiser(shape))
        return sft.supervised_work(config, shape, learner.num_states(config.data.gen_length))
