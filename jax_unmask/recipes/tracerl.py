"""Recipe "tracerl": a denoiser learns by reinforcement from its own trajectories."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask import denoisers
from jax_unmask.denoisers.flops import head_flops, layer_flops
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.denoisers.sharding import RULES, in_product_type
from jax_unmask.environment.bundle import (
    Bundle,
    describe,
    load_bundle,
    load_denoiser_config,
    load_task,
)
from jax_unmask.environment.settings import DType, ModelSettings, TaskSettings, TrainSettings
from jax_unmask.learners.advantages import chunk_rewards, group_advantages, group_z_scores
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.optim import OptimizerSettings
from jax_unmask.learners.states import AttentionBlocks, Responses, in_blocks
from jax_unmask.learners.surrogates import SurrogateSettings
from jax_unmask.learners.tracerl import LossSettings, TraceLearner, ValueSettings
from jax_unmask.recipes import base
from jax_unmask.recipes.process import ProcessRewards, ProcessSettings, build_judge
from jax_unmask.recipes.rollouts import (
    Fetched,
    RollingSettings,
    Rollouts,
    TrainingRollouts,
    choose_groups,
    rollout_program,
    rows_of,
    text_lengths,
)
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.flops import row_flops
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime import streams
from jax_unmask.runtime.mesh import REPLICATED
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import ConfigError, Settings, setting, setting_of, values_of
from jax_unmask.tasks import data, rewards
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.data import Batch


@dataclasses.dataclass(frozen=True)
class ReinforcedModel(ModelSettings):
    """The denoiser that learns by reinforcement."""

    param_dtype: DType = setting(
        "float32",
        "Type of the weights, which stay float32 over all steps unless adapters are trained: "
        "bfloat16 ones do not move under a learning rate of 1e-6.",
    )
    remat: bool = setting_of(denoisers.Denoiser, "remat", default=True)


@dataclasses.dataclass(frozen=True)
class TraceRollouts(TrainingRollouts):
    """The rollouts of TraceRL."""

    top_k: int = setting_of(Sampling, "top_k")
    top_p: float = setting_of(Sampling, "top_p")
    policy: str = setting("top_confidence:tokens_per_step=1", "The unmasking policy.")

    def filters(self, family: str) -> Sampling:
        """Sampling of tokens with these filters, as a denoiser's family has it."""
        return denoisers.families.sampling(family, self.top_k, self.top_p)


@dataclasses.dataclass(frozen=True)
class GroupBounds(Settings):
    """The groups that are trained: those of equal rewards never are."""

    low: float = setting(0.2, "Lowest accuracy of a group that is trained.", ge=0, le=1)
    high: float = setting(0.8, "Highest accuracy of a group that is trained.", ge=0, le=1)

    def check(self) -> None:
        self.require_at_most("low", "high")

    def keeps(self, accuracy: Float[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        """Prompts that are neither hopeless nor solved, by the accuracy of their groups."""
        # Shares of small groups meet the bounds exactly up to rounding: 0.8 of five is 4 / 5.
        return (accuracy >= self.low - 1e-6) & (accuracy <= self.high + 1e-6)


@dataclasses.dataclass(frozen=True)
class GroupFilter(GroupBounds):
    """The groups of a batch, from as many rounds of rollouts as it takes."""

    rounds: int = setting(
        4, "Most batches of prompts that are rolled out to fill a batch of groups.", ge=1
    )


@dataclasses.dataclass(frozen=True)
class TraceReward(rewards.RewardSettings):
    """The reward of TraceRL, and the advantages that are made of it."""

    advantage: Literal["z_score", "centred"] = setting(
        "z_score", "Rewards minus the mean of their group; z_score also divides by its deviation."
    )
    limit_margin: int | None = setting(
        None,
        "Answers whose text comes within so many tokens of rollout.gen_length are wrong, whatever "
        "they say (5 published, for mathematics); None for none.",
        ge=0,
    )

    def within_limit(
        self, correct: Float[np.ndarray, " B"], length: Int[np.ndarray, " B"], limit: int
    ) -> Float[np.ndarray, " B"]:
        """The scores, 0 for texts whose length comes too close to the limit."""
        if self.limit_margin is None:
            return correct
        return np.where(length >= limit - self.limit_margin, 0, correct).astype(correct.dtype)

    def advantages(self, reward: Array, group_size: int) -> Array:
        """Advantages of rewards [B], groups next to each other."""
        make = group_z_scores if self.advantage == "z_score" else group_advantages
        return make(reward, group_size).advantages


@dataclasses.dataclass(frozen=True)
class TraceLearning(SurrogateSettings, LossSettings):
    """The states and the loss of TraceRL, and of the methods that it is compared with."""

    block_length: int | None = setting(
        None,
        "With block attention, the block length in training; None for that of the rollout.",
        ge=1,
    )


@dataclasses.dataclass(frozen=True)
class TraceRlSettings(RollingSettings):
    """Settings of `TraceRl`; published ones for LLaDA-8B-Instruct (arXiv 2509.06949, app. B)."""

    update_key: ClassVar[str] = "learner.chunk_size"
    lora_key: ClassVar[str] = "lora"

    task: TaskSettings = TaskSettings(prompt_length=512)
    model: ReinforcedModel = ReinforcedModel()
    rollout: TraceRollouts = TraceRollouts(
        gen_length=512, temperature=0.8, vocab_chunk=16384, prompts_per_step=32
    )
    filter: GroupFilter = GroupFilter()
    reward: TraceReward = TraceReward(alpha=0.0)
    learner: TraceLearning = TraceLearning(num_pads=0, minibatches=8, chunk_size=2)
    value: ValueSettings = ValueSettings()
    lora: denoisers.LoraSettings = denoisers.LoraSettings()
    process: ProcessSettings = ProcessSettings()
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=1e-6, warmup_steps=0, schedule="constant", b2=0.999, weight_decay=0.0, grad_clip=1.0
    )
    train: TrainSettings = TrainSettings(steps=50)
    export: str | None = base.export_setting()

    training_only: ClassVar[tuple[str, ...]] = (*RollingSettings.training_only, "rollout.policy")

    def check(self) -> None:
        base.check_export(self.export)
        base.check_schedule(self.optimizer, self.optimizer_steps)
        self.require(
            self.lora.rank > 0 or self.model.param_dtype == "float32",
            "model.param_dtype",
            "steps of reinforcement are too small for weights of 16 bits, which would not move",
            "Set float32, or `lora.rank` above 0: adapters are float32 beside frozen weights",
        )
        self.require(
            self.process.judge == "none" or self.value.enabled,
            "process.judge",
            "rewards of chunks need a value model to become advantages (`value.enabled` = False)",
            "Set `value.enabled` = True, or 'none'",
        )
        self.require(
            not self.value.enabled or self.learner.surrogate == "trace",
            "value.enabled",
            "values belong to the steps of a trace",
            "Set `learner.surrogate` = 'trace', or False",
        )

    def check_spread(self, placement: Placement) -> None:
        base.parse_policy("rollout.policy", self.rollout.policy)
        super().check_spread(placement)
        size = self.learner.chunk_size
        self.require_spread(placement, self.update_key, size, "its states")

    def sampling_of(self, family: str) -> RolloutSettings:
        return dataclasses.replace(self.sampling, sampling=self.rollout.filters(family))

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.train.steps * self.learner.passes * self.learner.minibatches

    @property
    def states_at_once(self) -> int:
        return self.learner.chunk_size


def build_learner(
    config: TraceRlSettings, denoiser: denoisers.Denoiser, end_ids: tuple[int, ...]
) -> TraceLearner:
    """The learner of the denoiser, and of the value model if there is one.

    Raises:
        ConfigError: a block length is given for a denoiser with full attention.
    """
    learner, value, blocks = config.learner, None, None
    if config.value.enabled:
        own = dataclasses.replace(config.optimizer, lr=config.value.lr)
        value = dataclasses.replace(config.value, optimizer=own.build(config.optimizer_steps))
    if denoiser.config.attention_block is not None:
        blocks = AttentionBlocks(learner.block_length or config.rollout.block_length)
    elif learner.block_length is not None:
        raise ConfigError(
            "learner.block_length",
            learner.block_length,
            f"the denoiser, of family {denoiser.config.family!r}, has full attention",
            "Leave it out; rollout.block_length says how responses are written",
        )
    return TraceLearner(
        denoiser=denoiser.clone(remat=config.model.remat),
        optimizer=config.optimizer.build(config.optimizer_steps),
        surrogate=learner.build(),
        blocks=blocks,
        value=value,
        end_ids=end_ids,
        **values_of(learner, LossSettings),
    )


def build_settings(
    config: TraceRlSettings,
    denoiser: denoisers.DenoiserConfig,
    end_ids: tuple[int, ...],
    slot_groups: int = RolloutSettings.slot_groups,
) -> RolloutSettings:
    """The shape of the rollouts; raises a `ConfigError` for a cache that does not fit."""
    rollouts = config.rollout
    base.check_cache(rollouts.cache, denoiser)
    sampling = rollouts.filters(denoiser.family)
    return rollouts.settings(end_ids, slot_groups=slot_groups, sampling=sampling)


@struct.dataclass
class RoundScores:
    """Scores of a round of rollouts on the hosts: B rows, P prompts of B / P rows each."""

    correct: Float[np.ndarray, " B"]  # The checker's verdict.
    reward: Float[np.ndarray, " B"]
    nfe: Int[np.ndarray, " B"]
    length: Int[np.ndarray, " B"]  # Filled tokens before the first end, and that end.
    unfinished: Bool[np.ndarray, " B"]  # Positions were left masked.
    over_budget: Bool[np.ndarray, " P"]  # The prompt was cut to its budget.
    alike: Bool[np.ndarray, " P"]  # All rewards of the prompt are equal.
    kept: Bool[np.ndarray, " P"]  # The prompt may be trained on.


@dataclasses.dataclass(frozen=True)
class RolloutRound:
    """A round of rollouts: `group_size` responses to each prompt of a batch, next to each other."""

    responses: Responses  # On the devices, each of which has some of the rows.
    scores: RoundScores  # Of all rows and prompts, the same in all processes.
    examples: list[Example | None]  # Problem of each row; None where another process knows it.
    useful: float  # Share of the executed forwards that a row needed.


def make_adapters(config: TraceRlSettings, denoiser: denoisers.DenoiserConfig) -> Any:
    """The low-rank adapters that training starts from; None where all parameters are trained.

    Raises:
        ConfigError: a target is nothing that the denoiser has.
    """
    lora = config.lora
    if not lora.rank:
        return None
    key = streams.stream(streams.root(config.seed), "adapters")
    try:
        return denoisers.init_adapters(denoiser, key, lora.rank, lora.targets, lora.scale)
    except ValueError as error:
        remedy = "Name some of these, or give () for all"
        raise ConfigError("lora.targets", lora.targets, str(error), remedy) from error


def check_denoiser(config: TraceRlSettings, denoiser: denoisers.DenoiserConfig) -> None:
    """Raises a `ConfigError` for settings that do not fit the denoiser."""
    base.check_fits(denoiser, config.task.prompt_length, config.rollout.gen_length)
    build_settings(config, denoiser, ())
    build_learner(config, denoisers.Denoiser(denoiser), ())
    jax.eval_shape(lambda: make_adapters(config, denoiser))


def update_flops(
    config: TraceRlSettings, denoiser: denoisers.DenoiserConfig, states: float, tokens: float
) -> float:
    """Matrix products of an update, its backward pass included, in operations.

    Args:
        config: the settings.
        denoiser: the denoiser.
        states: states per pass; with block attention, one has a state of every block.
        tokens: trained tokens per pass, which alone go through the vocabulary projection.
    """
    prompt, canvas = config.task.prompt_length, config.rollout.gen_length
    length = prompt + canvas
    if denoiser.attention_block is not None:
        # The masked copy of the canvas follows the text, which its blocks attend to.
        length += canvas
    trunk = layer_flops(denoiser, length, canvas, length)
    models = 2 if config.value.enabled else 1  # A value model is as large.
    forward = models * states * trunk + head_flops(denoiser, 1) * tokens
    return 3.0 * config.learner.passes * forward


_OF_VALUES = ("value_loss", "value_grad_norm", "value_error", "return_deviation")


BATCHES = {"truncate": True}
"""Of training batches: a prompt over its budget must not end a run, `round` sees to it."""


class TraceRl(base.Recipe):
    """TraceRL and the methods it is compared with (Wang et al., arXiv 2509.06949)."""

    metrics = (
        *("reward", "accuracy", "nfe", "response_length", "tokens_per_step", "without_end"),
        *("useful_forwards", "unfinished", "prompts_over_budget", "groups_alike", "groups_kept"),
        *("rounds", "process_score", *_OF_VALUES),
        *("loss", "clip_fraction", "kl", "reference_kl", "surprise"),
        *("ratio_max", "grad_norm", "trained_tokens", "states", "skipped"),
    )
    shown = ("accuracy", "tokens_per_step", "groups_kept")
    defaults = TraceRlSettings()
    trains = ("denoiser",)

    @classmethod
    def metrics_of(cls, config: TraceRlSettings) -> tuple[str, ...]:
        absent = set() if config.value.enabled else set(_OF_VALUES)
        absent |= {"process_score"} if config.process.judge == "none" else set()
        return tuple(each for each in cls.metrics if each not in absent)

    @classmethod
    def check(cls, config: TraceRlSettings, workdir: pathlib.Path) -> Bundle:
        bundle = describe(config)
        check_denoiser(config, bundle.denoiser.config)
        settings = build_settings(config, bundle.denoiser.config, ())
        base.check_policy("rollout.policy", config.rollout.policy, bundle.denoiser.config, settings)
        build_judge(config.process, bundle.task)
        base.check_examples(config, bundle, **BATCHES)
        return bundle

    def __init__(self, config: TraceRlSettings, workdir: pathlib.Path) -> None:
        del workdir
        self._config = config
        self._group = config.rollout.group_size
        self._lora = config.lora.rank > 0
        self._policy, self._policy_params = base.parse_policy(
            "rollout.policy", config.rollout.policy
        )
        self._placement = placements.from_config(config)  # Of training.
        check_denoiser(config, load_denoiser_config(config))
        judge = build_judge(config.process, load_task(config))
        # Last: the weights take longest.
        self._bundle = load_bundle(config, weights=self._placement)
        self._rollouts = Rollouts.of(config, self._bundle)
        denoiser = self._bundle.denoiser
        self._ends = self._bundle.tokenizer.stop_ids
        shards = self._bundle.placement.shards
        self._settings = build_settings(config, denoiser.config, self._ends, shards)
        self._learner = build_learner(config, denoiser, self._ends)
        self._process = None
        if judge is not None:
            self._process = ProcessRewards(judge, config.process.chunk_length, self._bundle)
        self._batches: data.BatchIterator | None = None

    @property
    def bundle(self) -> Bundle:
        """Denoiser, tokenizer and task, without the weights once training needs them no more."""
        return self._bundle

    def init(self) -> TrainState:
        params, needed = self._bundle.params, self._free_loaded()
        return self._placement.make(
            self._learner.init,
            params,
            streams.training_key(self._config.seed),
            make_adapters(self._config, self._bundle.denoiser.config),
            rules=RULES,
            donate=() if needed else (0,),
        )

    def like(self) -> TrainState:
        params, denoiser = self._bundle.params, self._bundle.denoiser.config
        self._free_loaded()
        adapters = jax.eval_shape(lambda: make_adapters(self._config, denoiser))
        key = streams.training_key(self._config.seed)
        return self._placement.like(self._learner.init, params, key, adapters, rules=RULES)

    def _free_loaded(self) -> bool:
        """Frees the loaded weights, unless steps need them; returns whether they do."""
        needed = self._lora or self._config.learner.reference_beta > 0
        if not needed:
            self._bundle = dataclasses.replace(self._bundle, params=None)
            self._rollouts = Rollouts.of(self._config, self._bundle)
        return needed

    def acting(self, state: TrainState) -> Any:
        """The current denoiser as rollouts read it; adapters lie beside the frozen weights."""
        params = state.params["denoiser"]
        if self._lora:
            params = denoisers.with_adapters(self._bundle.params, params)
        return self._rollouts.weights(params)

    def data(self) -> data.BatchIterator:
        size = self._config.rollout.prompts_per_step
        self._batches = base.training_batches(
            self._config, self._bundle, self._bundle.placement, size, **BATCHES
        )
        return self._batches

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, base.Metrics]:
        config, key = self._config, state.step_key()
        # Several rounds of rollouts if too few prompts of one can be trained on.
        wanted, rounds = config.rollout.prompts_per_step, []
        acting = self.acting(state)
        for number in range(config.filter.rounds):
            if number:
                assert self._batches is not None  # The loop took `batch` from it.
                # Nothing is carried over to the next step, so its position is all there is to save.
                batch = next(self._batches)
            round_key = streams.stream(key, "rollout", number)
            rounds.append(self._roll_out(acting, batch, round_key, timer))
            if sum(int(each.scores.kept.sum()) for each in rounds) >= wanted:
                break
        del acting  # The update needs the memory.
        return self.learn(state, rounds, timer)

    def learn(
        self, state: TrainState, rounds: Sequence[RolloutRound], timer: Timer
    ) -> tuple[TrainState, base.Metrics]:
        """An update of the denoiser on rounds of rollouts; the state is donated."""
        config, wanted = self._config, self._config.rollout.prompts_per_step
        # 1. The rows to train on, gathered from the devices that wrote them.
        scores = jax.tree.map(lambda *x: np.concatenate(x), *(each.scores for each in rounds))
        groups, is_kept = choose_groups(scores.kept, wanted)
        rows = (groups[:, None] * self._group + np.arange(self._group)).reshape(-1)
        kept = np.repeat(is_kept, self._group)
        gather = self._bundle.placement.make
        responses = gather(rows_of, [each.responses for each in rounds], rows, rules=REPLICATED)
        # 2. Their advantages.
        found: base.Metrics = {}
        if self._process is None:
            advantages = config.reward.advantages(jnp.asarray(scores.reward[rows]), self._group)
        else:
            with timer.measure("process"):
                examples = [example for each in rounds for example in each.examples]
                judged = self._process(
                    [examples[row] for row in rows],
                    np.asarray(responses.tokens),
                    scores.length[rows],
                    scores.correct[rows] == 1,
                    kept,
                    self._group,
                )
            found = {"process_score": judged.mean}
            canvas = self._learner.describe(responses)
            advantages = chunk_rewards(
                jnp.asarray(judged.scores),
                jnp.asarray(scores.length[rows]),
                canvas.time,
                canvas.trainable,
                self._process.chunk_length,
            )
        # 3. The update.
        with timer.measure("update"):
            given = self._placement.everywhere((responses, advantages, kept))
            loaded = self._bundle.params
            with self._placement.active():
                state, metrics = self._learner.update(
                    state,
                    *given,
                    loaded if config.learner.reference_beta > 0 else None,
                    loaded if self._lora else None,
                )
            jax.block_until_ready(state.params)
        return state, {
            "reward": np.mean(scores.reward),
            "accuracy": np.mean(scores.correct),
            "nfe": np.mean(scores.nfe),
            "response_length": np.mean(scores.length),
            "tokens_per_step": np.sum(scores.length) / np.sum(scores.nfe),
            "without_end": np.mean(scores.length == self._settings.gen_length),
            "useful_forwards": np.mean([each.useful for each in rounds]),
            "unfinished": np.mean(scores.unfinished),
            "prompts_over_budget": np.mean(scores.over_budget),
            "groups_alike": np.mean(scores.alike),
            "groups_kept": is_kept.sum() / wanted,
            "rounds": len(rounds),
            **found,
            **metrics,
        }

    def flops(self, metrics: Mapping[str, float]) -> float:
        config, denoiser = self._config, self._bundle.denoiser.config
        rows = metrics["rounds"] * config.rollout.prompts_per_step * self._group
        prompt = config.task.prompt_length
        each = row_flops(denoiser, self._policy, self._settings, prompt, metrics["nfe"])
        trained = update_flops(config, denoiser, metrics["states"], metrics["trained_tokens"])
        return rows * each + trained

    def _trained(self, state: TrainState) -> Bundle:
        """The denoiser as it is, adapters merged in."""
        bundle, params = self._bundle, state.params["denoiser"]
        if self._lora:
            params = denoisers.merge_adapters(bundle.params, params)
        denoiser = in_blocks(bundle.denoiser, self._learner.blocks)
        return dataclasses.replace(bundle, denoiser=denoiser, params=params)

    def current(self, state: TrainState) -> Bundle:
        """The denoiser as it is, where rollouts read it."""
        bundle = self._trained(state)
        return dataclasses.replace(bundle, params=self._rollouts.weights(bundle.params))

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        bundle = self._trained(state)
        exported = base.export_denoiser(self._config, bundle, workdir)
        return dataclasses.replace(exported, params=self._rollouts.weights(bundle.params))

    def _roll_out(self, params: Any, batch: Batch, key: Any, timer: Timer) -> RolloutRound:
        """Responses to a batch of prompts, `group_size` each, and what they are worth."""
        with timer.measure("rollout"):
            trajectories = self._rollouts.start(
                params,
                self._policy,
                self._policy_params,
                batch.prompts,
                self._group,
                key,
                self._settings,
            )
            fetched = self._rollouts.fetch(trajectories, batch.examples, self._group)
            executed = sum(each.executed_cost for each in trajectories)
            useful = float(sum(jnp.sum(each.cost) for each in trajectories) / executed)
        with timer.measure("reward"):
            correct = fetched.scores()
        return self.round(fetched, correct, batch, useful)

    def round(
        self, fetched: Fetched, correct: Float[np.ndarray, " B"], batch: Batch, useful: float
    ) -> RolloutRound:
        """Rollouts of a batch with what they are worth, and which prompts may be trained on.

        Args:
            fetched: the rows of this process's feed, `group_size` per prompt.
            correct: their scores.
            batch: their prompts.
            useful: share of the executed forwards that a row needed.
        """
        config, placement, size = self._config, self._bundle.placement, self._group
        tokens, step_map, nfe = fetched.tokens, fetched.step_map, fetched.nfe
        length = text_lengths(tokens, step_map, self._ends)
        correct = config.reward.within_limit(correct, length, self._settings.gen_length)
        reward = config.reward(correct, nfe, self._settings.gen_length)
        reward = np.asarray(reward, np.float32)
        over_budget = batch.prompt_lengths > config.task.prompt_length
        grouped = reward.reshape(-1, size)
        alike = grouped.max(axis=1) == grouped.min(axis=1)
        right = correct.reshape(-1, size).mean(axis=1)
        kept = config.filter.keeps(right) & ~alike
        if not config.task.truncate_prompts:
            kept &= ~over_budget
        scores = RoundScores(
            correct=correct,
            reward=reward,
            nfe=nfe,
            length=length,
            unfinished=np.any(step_map < 0, axis=1),
            over_budget=over_budget,
            alike=alike,
            kept=kept,
        )
        prompts = jax.tree.map(lambda leaf: np.repeat(leaf, size, axis=0), batch.prompts)
        examples: list[Example | None] = [None] * (len(tokens) * placement.feeds)
        first = placement.feed * len(tokens)
        examples[first : first + len(tokens)] = [e for e in batch.examples for _ in range(size)]
        return RolloutRound(
            responses=placement.rows(Responses(prompts, tokens, step_map)),  # type: ignore[arg-type]
            scores=placement.gather(scores),
            examples=examples,
            useful=useful,
        )

    @classmethod
    def blueprint(
        cls, config: TraceRlSettings, shape: denoisers.DenoiserConfig, placement: Placement
    ) -> base.Blueprint:
        ends, denoiser = (shape.eos_token_id,), denoisers.Denoiser(shape)
        learner = build_learner(config, denoiser, ends)
        rolling = placements.for_rollouts(config)
        settings = build_settings(config, shape, ends, rolling.shards)
        policy, policy_params = base.parse_policy("rollout.policy", config.rollout.policy)
        weights = placement.parameters(denoisers.abstract_params(shape), RULES)
        adapters = jax.eval_shape(lambda: make_adapters(config, shape))
        state = jax.eval_shape(learner.init, weights, jax.random.key(0), adapters)
        state = placement.parameters(state, RULES)
        acting = state.params["denoiser"]
        has_reference = config.learner.reference_beta > 0
        # Otherwise training frees the loaded weights.
        is_needed = adapters is not None or has_reference
        frozen = {"denoiser as loaded": weights} if is_needed else {}
        if adapters is not None:
            acting = placement.parameters(
                jax.eval_shape(denoisers.with_adapters, weights, acting), RULES
            )
        read = rolling.parameters(
            jax.eval_shape(lambda params: in_product_type(params, shape.dtype), acting), RULES
        )
        rows, prompt_length = config.rows, config.task.prompt_length
        is_copied = rolling != placement or jnp.dtype(shape.dtype) != jnp.dtype(shape.param_dtype)
        rolled = rollout_program(
            config, denoiser, read, policy, policy_params, settings, is_copied=is_copied
        )
        with placement.active():
            prompts, _ = base.prompt_shapes(placement, rows, prompt_length)
            canvas: Any = jax.ShapeDtypeStruct((rows, settings.gen_length), jnp.int32)
            given = (
                Responses(prompts=prompts, tokens=canvas, step_map=canvas),
                jax.ShapeDtypeStruct((rows,), jnp.float32),
                jax.ShapeDtypeStruct((rows,), jnp.bool_),
            )
            update = type(learner).update.lower(
                learner,
                state,
                *placement.everywhere(given),
                weights if has_reference else None,
                weights if adapters is not None else None,
            )
        return base.Blueprint(
            {**frozen, "trained parameters and optimiser": state},
            given,
            state.params["denoiser"],
            (rolled, base.TracedProgram("update", update)),
            read,
        )

    @classmethod
    def work(
        cls, config: TraceRlSettings, shape: denoisers.DenoiserConfig, nfe: int | None = None
    ) -> base.Work:
        # The trace of a response has a state for each forward (over `learner.shrink`); with block
        # attention, one forward of an update has a state of every block.
        rollouts, rows = config.rollout, config.rows
        nfe = nfe or rollouts.gen_length // 2
        policy, _ = base.parse_policy("rollout.policy", rollouts.policy)
        settings = build_settings(config, shape, (shape.eos_token_id,))
        states, tokens = nfe / config.learner.shrink, rollouts.gen_length
        if shape.attention_block is not None:
            states = -(-states // (rollouts.gen_length // rollouts.block_length))
        return base.Work(
            nfe,
            rows * row_flops(shape, policy, settings, config.task.prompt_length, nfe),
            update_flops(config, shape, rows * states, rows * tokens),
        )
