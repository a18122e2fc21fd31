"""Recipe "policy_grpo": an unmasking policy learns against a frozen denoiser."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_unmask import denoisers, notation, policies
from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.denoisers.quantization import quantize_params
from jax_unmask.denoisers.sharding import RULES
from jax_unmask.environment.bundle import Bundle, describe, load_bundle, load_denoiser_config
from jax_unmask.environment.settings import ModelSettings, TrainSettings
from jax_unmask.learners.advantages import group_advantages, relative_rewards
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.experts import ExpertSettings, merge_groups, with_experts
from jax_unmask.learners.optim import OptimizerSettings
from jax_unmask.learners.policy_grpo import PolicyLearner, PolicyRows, update_together
from jax_unmask.policies.base import PerRow, WithObservations, alphas_of
from jax_unmask.policies.checkpoint import MadeFor
from jax_unmask.policies.learned import NETWORKS
from jax_unmask.recipes import base
from jax_unmask.recipes.policy_start import load_start
from jax_unmask.recipes.rollouts import Fetched, RollingSettings, Rollouts, TrainingRollouts
from jax_unmask.report.model_card import write_policy_card
from jax_unmask.rollout import RolloutSettings, Trajectory, joined, never_filled, rollout
from jax_unmask.rollout.flops import row_flops
from jax_unmask.rollout.trajectory import Records
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime import streams
from jax_unmask.runtime.exports import places
from jax_unmask.runtime.mesh import REPLICATED
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import ConfigError, Variant, setting, values_of
from jax_unmask.tasks import data, rewards


@dataclasses.dataclass(frozen=True)
class FrozenModel(ModelSettings):
    """The denoiser that policies are trained for."""

    quantization: Literal["int8", "fp8"] | None = setting(
        None, "The layers' matrices in a byte per weight (extra `quantization`)."
    )


@dataclasses.dataclass(frozen=True)
class TrainedPolicy(policies.LearnedPolicy):
    """The policy that is trained; `network` has the settings of the network that `kind` names."""

    network: Any = Variant(NETWORKS, "confidence")
    init_from: str | None = setting(
        None,
        "Continue from a trained policy: a run's workdir, its directory policy/, or a name. Its "
        "network may read less: what it computes does not change until it has learned to use more.",
    )
    temperature: float = setting(
        1.0,
        "Divides the policy's logits while it is trained, and in the file that results. A policy "
        "that is nearly deterministic gives all answers of a group one reward, from which nothing "
        "is learned (`groups_with_signal`): at 2 to 4 it explores again.",
        gt=0,
        le=100,
    )

    def check(self) -> None:
        super().check()
        self.require(
            self.distribution != "threshold",
            "distribution",
            "a deterministic policy has no likelihood to train",
            "Choose bernoulli, bernoulli_argmax or dpls",
        )


@dataclasses.dataclass(frozen=True)
class PolicyGrpoSettings(RollingSettings):
    """Settings of `PolicyGrpo`; published ones for LLaDA-8B-Instruct (arXiv 2512.09106)."""

    update_key: ClassVar[str] = "learner.chunk_size"

    model: FrozenModel = FrozenModel()
    rollout: TrainingRollouts = TrainingRollouts(vocab_chunk=16384)
    policy: TrainedPolicy = TrainedPolicy()
    reward: rewards.RewardSettings = rewards.RewardSettings()
    expert: ExpertSettings = ExpertSettings()
    learner: PolicyLearner = PolicyLearner()
    optimizer: OptimizerSettings = OptimizerSettings()
    # One epoch over GSM8K's 7,473 training problems, 16 prompts at a time.
    train: TrainSettings = TrainSettings(steps=467)

    training_only: ClassVar[tuple[str, ...]] = (*RollingSettings.training_only, "expert")

    def check(self) -> None:
        base.check_schedule(self.optimizer, self.train.steps * self.learner.optimizer_steps)
        if self.expert.count:
            self.require_divides("expert.block_length", "rollout.gen_length")
            self.require(
                self.rollout.block_length == self.rollout.gen_length,
                "expert.count",
                "expert steering is for full diffusion",
                f"Set it to 0, or `rollout.block_length` = {self.rollout.gen_length}",
            )

    def check_spread(self, placement: Placement) -> None:
        super().check_spread(placement)
        what = f"the {self.rows} rows of an update"
        self.require_spread(placement, "rollout.prompts_per_step", self.rows, what)
        if self.expert.count:
            base.parse_policy("expert.policy", self.expert.policy, final=False)
            rows = self.rollout.prompts_per_step * self.expert.count // self.rollout.batches
            what = f"the {rows} expert rows of a rollout"
            self.require_spread(placements.for_rollouts(self), "expert.count", rows, what)

    @property
    def policy_name(self) -> str:
        return f"policy, alpha {self.reward.alpha:g}"

    @property
    def rows(self) -> int:
        return self.rollout.rows + self.rollout.prompts_per_step * self.expert.count


def build_policy(config: PolicyGrpoSettings, denoiser: DenoiserConfig) -> policies.LearnedPolicy:
    """The policy of `config.policy` (its weights apart), for a denoiser."""
    # Of any types, so that policies of one shape are equal.
    float32 = np.dtype("float32")
    shape = dataclasses.replace(denoiser, dtype=float32, param_dtype=float32)
    return policies.LearnedPolicy(
        network=config.policy.network.build(denoiser=shape),
        **values_of(config.policy, policies.LearnedPolicy),
    )


def check_denoiser(config: PolicyGrpoSettings, denoiser: DenoiserConfig) -> None:
    """Raises a `ConfigError` for settings that do not fit the denoiser."""
    policy = build_policy(config, denoiser)
    network, length = policy.network, config.rollout.gen_length
    base.check_fits(denoiser, config.task.prompt_length, length)
    base.check_cache(config.rollout.cache, denoiser)
    try:
        jax.eval_shape(lambda key: policy.init_params(key, length), jax.random.key(0))
    except ValueError as error:
        key, value = "policy.network.kind", config.policy.network.kind
        remedy = "Change that setting of `policy.network`"
        raise ConfigError(key, value, str(error).rstrip("."), remedy) from error
    if isinstance(network, policies.NetworkConfig):
        if network.hidden_size not in (0, denoiser.hidden_size):
            raise ConfigError(
                "policy.network.hidden_size",
                network.hidden_size,
                f"the denoiser's hidden states are {denoiser.hidden_size} wide",
                f"Give {denoiser.hidden_size} to observe them, 0 not to",
            )
        if network.top_k > denoiser.vocab_size:
            raise ConfigError(
                "policy.network.top_k",
                network.top_k,
                f"the denoiser has {denoiser.vocab_size} tokens",
                "Lower it",
            )


@dataclasses.dataclass(frozen=True)
class Components:
    """Policy, learner, expert and their rollout settings, built from a config."""

    policy: policies.LearnedPolicy
    settings: RolloutSettings
    learner: PolicyLearner
    expert: WithObservations | None
    expert_params: Any
    expert_settings: RolloutSettings
    expert_alphas: tuple[float, ...] = ()  # Smallest and largest that it can be told, if any.


def build_components(
    config: PolicyGrpoSettings,
    denoiser: DenoiserConfig,
    end_ids: tuple[int, ...] = (),
    slot_groups: int = RolloutSettings.slot_groups,
) -> Components:
    """Builds `Components` from settings.

    Args:
        config: the settings.
        denoiser: shape of the denoiser.
        end_ids: tokens that end a text, for `rollout.stop_at_end`.
        slot_groups: shards of a batch on the mesh.
    """
    policy = build_policy(config, denoiser)
    settings = config.rollout.settings(end_ids, record=True, slot_groups=slot_groups)
    learner = dataclasses.replace(
        config.learner,
        policy=policy,
        optimizer=config.optimizer.build(config.train.steps * config.learner.optimizer_steps),
        group_size=config.rollout.group_size,
        grad_clip=config.optimizer.grad_clip,
        expert=config.expert,
    )
    if not config.expert.count:
        return Components(policy, settings, learner, None, None, settings)
    expert, expert_params = base.parse_policy("expert.policy", config.expert.policy, final=False)
    expert_settings = dataclasses.replace(
        settings, block_length=config.expert.block_length, prompt_rows=config.expert.count
    )
    named = {name for name, _ in notation.parse(config.expert.policy).settings}
    alphas = () if named & {"alpha", "nfe"} else alphas_of(expert)
    expert = WithObservations(expert, policy.needs)
    return Components(policy, settings, learner, expert, expert_params, expert_settings, alphas)


@dataclasses.dataclass(frozen=True)
class Experience:
    """Rollouts of a step and their scores.

    Attributes:
        trajectory: the policy's rollouts, on the devices.
        expert: those of the expert, if there is one.
        fetched: the policy's rollouts of this process's prompts, on the host.
        scores: what the checker says of these.
        correct: scores of all rows: of the policy, and of the expert if there is one.
        nfe: their forwards.
        alphas: what the policy was told in each of them; None if it is not told.
        rewards: what each of them earns.
        metrics: of the rollouts.
    """

    trajectory: Trajectory
    expert: Trajectory | None
    fetched: Fetched
    scores: np.ndarray
    correct: list[np.ndarray]
    nfe: list[np.ndarray]
    alphas: list[np.ndarray] | None
    rewards: list[np.ndarray]
    metrics: dict[str, Any]


class PlannedStep(NamedTuple):
    """A step before anything of it exists.

    Attributes:
        denoiser: weights of the denoiser.
        state: the training state.
        rollouts: programs of the rollouts.
        passing: what lives only during a step.
        learner, records, rows: what the update takes.
    """

    denoiser: Any
    state: TrainState
    rollouts: tuple[base.TracedProgram, ...]
    passing: Any
    learner: PolicyLearner
    records: Records
    rows: PolicyRows


def traced_update(steps: Sequence[PlannedStep], placement: Placement) -> base.TracedProgram:
    """The program of the update on the rollouts of one environment or several."""
    learners, records, rows = zip(
        *((each.learner, each.records, each.rows) for each in steps), strict=True
    )
    with placement.active():
        lowered = update_together.lower(learners, steps[0].state, records, rows)
    return base.TracedProgram("update", lowered, has_denoiser=False)


def check_but_examples(config: PolicyGrpoSettings) -> Bundle:
    """`Recipe.check` of the denoiser, the policy to start from and the task."""
    bundle = describe(config)
    shape, expert = bundle.denoiser.config, config.expert
    check_denoiser(config, shape)
    load_start(config.policy.init_from, build_policy(config, shape).network)
    if expert.count:
        settings = build_components(config, shape).expert_settings
        settings = dataclasses.replace(settings, record=False)
        base.check_policy("expert.policy", expert.policy, shape, settings, final=False)
    return bundle


class PolicyGrpo(base.Recipe):
    """GRPO of an unmasking policy (Jazbec et al., arXiv 2512.09106).

    Args:
        config: the settings.
        workdir: receives `policy/` (safetensors) at the end.
        load: loads denoiser, tokenizer and task; by default those of the config.
    """

    metrics = (
        *("reward", "accuracy", "nfe", "nfe_max", "useful_forwards", "unfinished", "cost"),
        *("groups_with_signal", "expert_reward", "imitated", "loss", "clip_fraction", "approx_kl"),
        *("entropy", "ratio_max", "grad_norm", "pairs", "skipped"),
        *("accuracy_at_small_alpha", "accuracy_at_large_alpha"),
        *("nfe_at_small_alpha", "nfe_at_large_alpha"),
    )
    shown = ("reward", "accuracy", "nfe")
    defaults = PolicyGrpoSettings()
    trains = ("policy",)
    build_policy = staticmethod(build_policy)

    @classmethod
    def metrics_of(cls, config: PolicyGrpoSettings) -> tuple[str, ...]:
        absent = {"cost"} if config.rollout.cache is None else set()
        absent |= set() if config.expert.count else {"expert_reward"}
        absent |= set() if config.expert.count and config.expert.imitation else {"imitated"}
        # Of the settings alone: the denoiser may be one that an earlier stage will write.
        told = dict(config.policy.network.values).get("alphas")
        absent |= set() if told else {each for each in cls.metrics if each.endswith("_alpha")}
        return tuple(each for each in cls.metrics if each not in absent)

    @classmethod
    def check(cls, config: PolicyGrpoSettings, workdir: pathlib.Path) -> Bundle:
        bundle = check_but_examples(config)
        base.check_examples(config, bundle)
        return bundle

    def __init__(
        self,
        config: PolicyGrpoSettings,
        workdir: pathlib.Path,
        load: Callable[[], Bundle] | None = None,
    ) -> None:
        del workdir
        self._config = config
        self._placement = placements.for_rollouts(config)
        shape = load_denoiser_config(config)
        self._components = build_components(config, shape, slot_groups=self._placement.shards)
        self._given = load_start(config.policy.init_from, self._components.policy.network)
        self._group = config.rollout.group_size
        self._experts = config.expert.count
        check_denoiser(config, shape)
        self._bundle = load() if load else load_bundle(config)  # Last: the weights take longest.
        self._rollouts = Rollouts.of(config, self._bundle)
        if config.rollout.stop_at_end:
            stop_ids = self._bundle.tokenizer.stop_ids
            self._components = build_components(config, shape, stop_ids, self._placement.shards)

    @property
    def bundle(self) -> Bundle:
        """Denoiser, tokenizer and task."""
        return self._bundle

    @property
    def learner(self) -> PolicyLearner:
        """The learner, of the settings of this environment."""
        return self._components.learner

    def init(self) -> TrainState:
        return placements.from_config(self._config).everywhere(self._make_state())

    def like(self) -> TrainState:
        training = placements.from_config(self._config)
        return training.like(self._make_state, rules=REPLICATED)

    def _make_state(self) -> TrainState:
        seed, params = self._config.seed, self._given
        if params is None:
            key = streams.stream(streams.root(seed), "init")
            params = self._components.policy.init_params(key, self._config.rollout.gen_length)
        # Test-time settings of a saved policy are not those of training.
        settings = self._components.policy.params(temperature=self._config.policy.temperature)
        settings = {name: jnp.asarray(value) for name, value in settings.items()}
        params = {"network": params["network"], **settings}
        return self._components.learner.init(params, streams.training_key(seed))

    def data(self) -> data.BatchIterator:
        size = self._config.rollout.prompts_per_step
        return base.training_batches(self._config, self._bundle, self._bundle.placement, size)

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, base.Metrics]:
        experience = self.roll_out(self._bundle.params, state, batch, timer)
        state, metrics = self.learn(state, experience, timer)
        return state, {**experience.metrics, **metrics}

    def roll_out(
        self,
        denoiser: Any,
        state: TrainState,
        batch: Any,
        timer: Timer,
        key: jax.Array | None = None,
    ) -> Experience:
        """Rollouts of the policy, and of the expert on the same prompts, with their scores.

        Args:
            denoiser: parameters of the denoiser, see `Rollouts.weights`.
            state: the training state of the policy.
            batch: prompts.
            timer: see `step`.
            key: typed PRNG key; by default that of the coming step.
        """
        key = state.step_key() if key is None else key
        components, placement = self._components, self._placement
        rollouts, expert = self._rollouts, None
        sizes = (self._group, self._experts) if self._experts else (self._group,)
        told = self._alphas(key, len(batch.examples))  # Of each prompt; None if it is not told.
        # 1. Rollouts.
        with timer.measure("rollout"):
            trajectories = rollouts.start(
                denoiser,
                components.policy,
                placement.lay_out(state.params, REPLICATED),
                batch.prompts,
                self._group,
                streams.stream(key, "rollout", 0),
                components.settings,
                None if told is None else {"alpha": np.repeat(told, self._group)},
            )
            if self._experts:
                expert_told = None
                if told is not None and components.expert_alphas:
                    low, high = components.expert_alphas
                    alpha = np.clip(told, low, high)
                    expert_told = {"alpha": np.repeat(alpha, self._experts)}
                expert_trajectories = rollouts.start(
                    denoiser,
                    components.expert,
                    components.expert_params,
                    batch.prompts,
                    self._experts,
                    streams.stream(key, "experts"),
                    components.expert_settings,
                    expert_told,
                )
            rolled = [rollouts.fetch(trajectories, batch.examples, self._group)]
            if self._experts:
                rolled.append(rollouts.fetch(expert_trajectories, batch.examples, self._experts))
                expert = joined(expert_trajectories, placement.feeds)
            trajectory = joined(trajectories, placement.feeds)
        # 2. Scores, on the hosts.
        with timer.measure("reward"):
            scores = [each.scores() for each in rolled]
            missing = never_filled(
                rolled[0].tokens,
                self._bundle.denoiser.config.mask_token_id,
                components.settings.stop_ids,
            )
            # All processes need the scores that each computed for its own rows.
            correct, nfe, alphas, unfinished, cost = placement.gather(
                (
                    scores,
                    [each.nfe for each in rolled],
                    None if told is None else [np.repeat(told, size) for size in sizes],
                    missing.any(axis=1),
                    None if trajectory.by_kind is None else placement.fetch(trajectory.cost),
                )
            )
        length, each_alpha = components.settings.gen_length, alphas or [None] * len(sizes)
        reward = [
            self._config.reward(right, steps, length, alpha)
            for right, steps, alpha in zip(correct, nfe, each_alpha, strict=True)
        ]
        metrics = {
            "reward": np.mean(reward[0]),
            "accuracy": np.mean(correct[0]),
            "nfe": np.mean(nfe[0]),
            "nfe_max": np.max(nfe[0]),
            "useful_forwards": trajectory.useful_forward_fraction,
            "unfinished": np.mean(unfinished),
            **({} if cost is None else {"cost": np.mean(cost)}),
            **({} if alphas is None else self._by_alpha(correct[0], nfe[0], alphas[0])),
            **({"expert_reward": np.mean(reward[1])} if self._experts else {}),
        }
        return Experience(
            trajectory, expert, rolled[0], scores[0], correct, nfe, alphas, reward, metrics
        )

    def learn(
        self, state: TrainState, experience: Experience, timer: Timer
    ) -> tuple[TrainState, base.Metrics]:
        """An update of the policy on rollouts; the state is donated."""
        with timer.measure("update"):
            records, rows, metrics = self.prepare(state, experience)
            # An update is spread over all devices, however few have rows of a rollout.
            with placements.from_config(self._config).active():
                state, learned = self.learner.update(state, records, *vars(rows).values())
            jax.block_until_ready(state.params)
        return state, {**metrics, **learned}

    def prepare(
        self, state: TrainState, experience: Experience
    ) -> tuple[Records, PolicyRows, dict[str, Any]]:
        """Records and rows of an update on rollouts, laid out over its devices; its metrics."""
        length = self._components.settings.gen_length
        correct, nfe, alphas = experience.correct, experience.nfe, experience.alphas
        # 1. Rewards, comparable between what the policy was told.
        value = compared = experience.rewards
        if alphas is not None:
            # A right answer in half of the forwards earns 0.93 at alpha 0.1 and 1e-9 at 30.
            if_right = [
                self._config.reward(np.ones(len(steps)), steps, length, alpha)
                for steps, alpha in zip(nfe, alphas, strict=True)
            ]
            compared = relative_rewards(value, if_right, len(value[0]) // self._group)
        # 2. Groups with their experts, advantages.
        records, is_expert = experience.trajectory.records, None
        group_rewards: Any = compared[0]
        settings = None if alphas is None else {"alpha": jnp.asarray(alphas[0])}
        imitated = None
        assert records is not None  # The settings ask for them.
        if experience.expert is not None:
            expert_records = experience.expert.records
            assert expert_records is not None
            records, is_expert = with_experts(records, expert_records, self._group, self._experts)
            merge: Any = functools.partial(
                merge_groups, group_size=self._group, num_experts=self._experts
            )
            group_rewards = merge(*map(jnp.asarray, compared))
            if alphas is not None:
                settings = {"alpha": merge(*map(jnp.asarray, alphas))}
            weight = self._imitation(state)
            if weight is not None:
                chosen = correct[1]
                if self._config.expert.imitated == "all":
                    chosen = np.ones_like(chosen)
                imitated = merge(jnp.zeros(len(correct[0])), weight * chosen)
                imitated_share = jnp.sum(imitated > 0) / len(correct[1])
        group_rewards = jnp.asarray(group_rewards, jnp.float32)
        advantages = group_advantages(group_rewards, self._group + self._experts)
        training = placements.from_config(self._config)
        rows = training.global_rows(
            PolicyRows(advantages.advantages, is_expert, imitated, settings or {})
        )
        return (
            training.records(records),
            rows,
            {
                "groups_with_signal": advantages.signal_fraction,
                **({} if imitated is None else {"imitated": imitated_share}),
            },
        )

    def _alphas(self, key: jax.Array, prompts: int) -> np.ndarray | None:
        """Alpha that the policy is told for each prompt of this process; None for one of one alpha.

        Drawn uniformly on a logarithmic scale, and spread evenly over the prompts of the step.
        """
        if not (bounds := self._components.policy.alphas):
            return None
        feed, feeds = self._placement.feed, self._placement.feeds
        offset = np.asarray(jax.random.uniform(streams.stream(key, "alphas")))
        place = (offset + (feed * prompts + np.arange(prompts)) / (feeds * prompts)) % 1.0
        low, high = bounds
        # Rounded, the ends may lie outside.
        return np.clip(low * (high / low) ** place, low, high).astype(np.float32)

    def _by_alpha(
        self, correct: np.ndarray, nfe: np.ndarray, alphas: np.ndarray
    ) -> dict[str, float]:
        """Accuracy and forwards where the policy was told a small alpha, and a large one."""
        middle = np.sqrt(np.prod(self._components.policy.alphas))
        metrics = {}
        for name, rows in (("small", alphas < middle), ("large", alphas >= middle)):
            for metric, values in (("accuracy", correct), ("nfe", nfe)):
                metrics[f"{metric}_at_{name}_alpha"] = np.mean(values, where=rows)
        return metrics

    def flops(self, metrics: Mapping[str, float]) -> float:
        # Of the policy's rollouts alone: its own network is small beside the denoiser, and the
        # forwards of experts are in no metric.
        config, components = self._config, self._components
        rows, prompt = config.rollout.prompts_per_step * self._group, config.task.prompt_length
        denoiser = self._bundle.denoiser.config
        return rows * row_flops(
            denoiser, components.policy, components.settings, prompt, metrics["nfe"]
        )

    def _imitation(self, state: TrainState) -> Any:
        """Weight of the likelihood of imitated expert rollouts at this step, or None."""
        expert = self._config.expert
        if not expert.imitation:
            return None
        return jnp.where(state.step < expert.imitation_steps, expert.imitation, 0.0)

    def finish(
        self, state: TrainState, workdir: pathlib.Path, *, config: PolicyGrpoSettings | None = None
    ) -> Bundle:
        """Exports the policy; `config` says where it was trained, if not here alone."""
        directory = places(self.trains, workdir)["policy"]
        if not jax.process_index():
            config, policy = config or self._config, self._components.policy
            policies.save_policy(directory, policy, state.params, MadeFor.all_of(config))
            write_policy_card(directory, config, workdir)
        return dataclasses.replace(self._bundle, policy=directory)

    @classmethod
    def blueprint(
        cls, config: PolicyGrpoSettings, shape: DenoiserConfig, placement: Placement
    ) -> base.Blueprint:
        planned = cls.planned(config, shape, placement)
        return base.Blueprint(
            {"denoiser": planned.denoiser, "policy and optimiser": planned.state},
            planned.passing,
            planned.state.params["network"],
            (*planned.rollouts, traced_update([planned], placement)),
            planned.denoiser,
        )

    @classmethod
    def planned(
        cls, config: PolicyGrpoSettings, shape: DenoiserConfig, placement: Placement
    ) -> PlannedStep:
        """Shapes of what a step has on the devices, and the programs of its rollouts."""
        rolling = placements.for_rollouts(config)
        components = build_components(
            config, shape, (shape.eos_token_id,), slot_groups=rolling.shards
        )
        denoiser, weights = denoisers.Denoiser(shape), denoisers.abstract_params(shape)
        if (kind := config.model.quantization) is not None:
            weights = jax.eval_shape(lambda params: quantize_params(params, kind), weights)
        weights = rolling.parameters(weights, RULES)
        state = jax.eval_shape(
            lambda key: components.learner.init(
                components.policy.init_params(key, config.rollout.gen_length), key
            ),
            jax.random.key(0),
        )
        state, acting = placement.everywhere(state), rolling.everywhere(state.params)
        group, experts = config.rollout.group_size, config.expert.count
        prompts_per_rollout = config.rollout.prompts_per_step // config.rollout.batches

        def alphas(rows: int, where: Placement) -> dict[str, Any]:
            if not components.policy.alphas:
                return {}
            return {"alpha": where.rows(jax.ShapeDtypeStruct((rows,), jnp.float32))}

        def roll_out(
            name: str, size: int, policy: Any, params: Any, settings: RolloutSettings
        ) -> base.TracedProgram:
            rows = prompts_per_rollout * size
            if policy is components.policy:
                told = {name: PerRow(values) for name, values in alphas(rows, rolling).items()}
                params = {**params, **told}
            prompts, keys = base.prompt_shapes(rolling, rows, config.task.prompt_length)
            lowered = rollout.lower(denoiser, weights, policy, params, prompts, keys, settings)
            return base.TracedProgram(name, lowered)

        def whole_step(leaf: Any) -> jax.ShapeDtypeStruct:
            steps, rows, *rest = leaf.shape
            return jax.ShapeDtypeStruct((steps, rows * config.rollout.batches, *rest), leaf.dtype)

        def records_of(program: base.TracedProgram) -> Any:
            return placement.records(jax.tree.map(whole_step, program.lowered.out_info.records))

        with rolling.active():
            programs = [roll_out("rollout", group, components.policy, acting, components.settings)]
            records = passing = records_of(programs[0])
            is_expert = None
            if experts:
                params = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, components.expert_params))
                params, settings = rolling.everywhere(params), components.expert_settings
                programs.append(
                    roll_out("expert rollout", experts, components.expert, params, settings)
                )
                theirs = records_of(programs[1])
                merged, is_expert = jax.eval_shape(
                    lambda ours, theirs: with_experts(ours, theirs, group, experts), records, theirs
                )
                records, is_expert = placement.records(merged), placement.rows(is_expert)
                passing = (passing, theirs, records)
            advantages = placement.rows(
                jax.ShapeDtypeStruct((records.active.shape[1],), jnp.float32)
            )
        rows = PolicyRows(advantages, is_expert, None, alphas(records.active.shape[1], placement))
        return PlannedStep(
            weights, state, tuple(programs), passing, components.learner, records, rows
        )

    @classmethod
    def work(
        cls, config: PolicyGrpoSettings, shape: DenoiserConfig, nfe: int | None = None
    ) -> base.Work:
        # The policy's own network is small beside the denoiser, which is not trained.
        nfe, components = nfe or config.rollout.gen_length // 2, build_components(config, shape)
        each = row_flops(
            shape, components.policy, components.settings, config.task.prompt_length, nfe
        )
        return base.Work(nfe, config.rows * each, 0.0)
