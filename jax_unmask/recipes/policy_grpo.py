"""Recipe "policy_grpo": an unmasking policy learns against a frozen denoiser."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jax_unmask import policies
from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.environment.bundle import (
    Bundle,
    build_cache,
    load_bundle,
    load_denoiser_config,
)
from jax_unmask.learners.advantages import group_advantages
from jax_unmask.learners.experts import ExpertSettings, merge_groups, with_experts
from jax_unmask.learners.policy_grpo import PolicyLearner
from jax_unmask.learners.state import TrainState
from jax_unmask.policies.base import Observing
from jax_unmask.policies.learned import NETWORKS, Network
from jax_unmask.recipes.base import (
    Metrics,
    build_optimizer,
    check_fits,
    training_batches,
)
from jax_unmask.recipes.rollouts import Rollouts
from jax_unmask.report.model_card import write_policy_card
from jax_unmask.rollout import RolloutSettings, joined, never_filled
from jax_unmask.rollout.flops import row_flops
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime import streams
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.mesh import REPLICATED
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks import data, rewards

_ONLY_AT_INIT = ("initial_bias",)


def build_policy(config: ConfigDict, denoiser: DenoiserConfig) -> policies.LearnedPolicy:
    """The policy of `config.policy` (its weights apart), for a denoiser."""
    settings = dict(config.policy.network)
    make = NETWORKS(settings.pop("kind"))
    if any(field.name == "denoiser" for field in dataclasses.fields(make)):
        # Of any types, so that policies of one shape are equal.
        settings["denoiser"] = dataclasses.replace(
            denoiser, dtype=np.dtype("float32"), param_dtype=np.dtype("float32")
        )
    return policies.LearnedPolicy(
        network=make(**settings),
        distribution=config.policy.distribution,
        context=config.policy.context,
        dpls_stop_logit=config.policy.dpls_stop_logit,
        exact_fallback=config.policy.exact_fallback,
    )


@dataclasses.dataclass(frozen=True)
class Parts:
    """Policy, learner, expert and their rollout settings, built from a config.

    Attributes:
        policy: the policy.
        settings: its rollouts.
        learner: what updates it.
        expert: the expert of each group, or None.
        expert_params: the expert's parameters.
        expert_settings: the expert's rollouts.
    """

    policy: policies.LearnedPolicy
    settings: RolloutSettings
    learner: PolicyLearner
    expert: Observing | None
    expert_params: Any
    expert_settings: RolloutSettings


def build_parts(
    config: ConfigDict,
    denoiser: DenoiserConfig,
    stop_ids: tuple[int, ...] = (),
    slot_groups: int = 1,
) -> Parts:
    """Builds `Parts` from a validated config.

    Args:
        config: the config.
        denoiser: shape of the denoiser.
        stop_ids: tokens that end a text, for `rollout.stop_at_end`.
        slot_groups: parts that the mesh cuts a batch into.

    Raises:
        ValueError: a value makes no sense; the message names it.
    """
    policy = build_policy(config, denoiser)
    settings = RolloutSettings(
        gen_length=config.rollout.gen_length,
        block_length=config.rollout.block_length,
        temperature=config.rollout.temperature,
        record=True,
        vocab_chunk=config.rollout.vocab_chunk,
        slots=config.rollout.slots,
        slot_groups=slot_groups,
        cache=build_cache(config.rollout.cache, "rollout.cache"),
        stop_ids=stop_ids if config.rollout.stop_at_end else (),
    )
    learner = PolicyLearner(
        policy=policy,
        optimizer=build_optimizer(
            config, config.learner.updates_per_batch * config.learner.minibatches
        ),
        clip=config.learner.clip,
        updates_per_batch=config.learner.updates_per_batch,
        minibatches=config.learner.minibatches,
        chunk_size=config.learner.chunk_size,
        entropy_coefficient=config.learner.entropy_coefficient,
        group_size=config.rollout.group_size,
        expert=ExpertSettings(**dict(config.expert)),
    )
    if not config.expert.count:
        return Parts(policy, settings, learner, None, None, settings)
    expert, expert_params = policies.parse_policy(config.expert.policy)
    expert_settings = dataclasses.replace(settings, block_length=config.expert.block_length)
    expert = Observing(expert, policy.needs)
    return Parts(policy, settings, learner, expert, expert_params, expert_settings)


def _described(network: Network) -> dict[str, Any]:
    """A network's kind and settings, as `config.policy.network` has them."""
    return {"kind": NETWORKS.name_of(type(network)), **dataclasses.asdict(network)}


class PolicyGrpo:
    """GRPO of an unmasking policy (Jazbec et al., arXiv 2512.09106).

    Args:
        config: see `jax_unmask.config.policy_grpo`; already validated.
        workdir: receives `policy/` (safetensors) at the end.
    """

    shown: tuple[str, ...] = ("reward", "accuracy", "nfe")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        del workdir
        self._config = config
        self._placement = placements.from_config(config)
        shape = load_denoiser_config(config)
        self._parts = build_parts(config, shape, slot_groups=self._placement.parts)
        self._given = self._load_policy() if config.policy.init_from else None
        self._group = config.rollout.group_size
        self._experts = config.expert.count
        self._reward = rewards.REWARDS[config.reward.kind]
        self._bundle = load_bundle(config)  # Last: the weights take longest.
        self._rollouts = Rollouts.of(config, self._bundle)
        self._check_denoiser(self._bundle.denoiser.config)
        if config.rollout.stop_at_end:
            stop_ids = self._bundle.tokenizer.stop_ids
            self._parts = build_parts(config, shape, stop_ids, self._placement.parts)

    def _load_policy(self) -> Any:
        """Weights of a saved policy, which must have the network of this config."""
        directory = self._config.policy.init_from
        saved, params = policies.load_policy(directory)
        ours, theirs = (_described(p.network) for p in (self._parts.policy, saved))
        different = [
            f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)"
            for name in ours | theirs
            # Settings that affect only initial values may differ.
            if theirs.get(name) != ours.get(name) and name not in _ONLY_AT_INIT
        ]
        if different:
            raise ConfigError(
                "policy.init_from",
                directory,
                "its network is another one: " + ", ".join(different),
                "Give config.policy.network the values of that policy",
            )
        # Test-time settings of the saved policy are not those of training.
        return params | {name: jnp.ones((), jnp.float32) for name in ("temperature", "scale")}

    def _check_denoiser(self, denoiser: DenoiserConfig) -> None:
        """Refuses observations that the denoiser does not offer."""
        config, network = self._config, self._parts.policy.network
        check_fits(denoiser, config.task.prompt_length, config.rollout.gen_length)
        build_cache(config.rollout.cache, "rollout.cache", denoiser)
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

    def init(self) -> TrainState:
        return self._placement.everywhere(self._make_state())

    def like(self) -> TrainState:
        return self._placement.like(self._make_state, rules=REPLICATED)

    def _make_state(self) -> TrainState:
        seed, params = self._config.seed, self._given
        if params is None:
            key = streams.stream(streams.root(seed), "init")
            params = self._parts.policy.init_params(key, self._config.rollout.gen_length)
        return self._parts.learner.init(params, streams.training_key(seed))

    def data(self) -> data.BatchIterator:
        config, bundle = self._config, self._bundle
        settings = data.BatchSettings(
            batch_size=config.rollout.prompts_per_step,
            prompt_length=config.task.prompt_length,
            seed=config.seed,
            truncate=config.task.truncate_prompts,
        )
        return training_batches(bundle.task, bundle.tokenizer, settings, self._placement)

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        parts, key, placement = self._parts, state.step_key(), self._placement
        rollouts, denoiser = self._rollouts, self._bundle.params
        with timer.measure("rollout"):
            policy_parts = rollouts.start(
                denoiser,
                parts.policy,
                state.params,
                batch.prompts,
                self._group,
                streams.stream(key, "rollout", 0),
                parts.settings,
            )
            if self._experts:
                expert_parts = rollouts.start(
                    denoiser,
                    parts.expert,
                    parts.expert_params,
                    batch.prompts,
                    self._experts,
                    streams.stream(key, "experts"),
                    parts.expert_settings,
                )
            rolled = [rollouts.fetch(policy_parts, batch.examples, self._group)]
            if self._experts:
                rolled.append(rollouts.fetch(expert_parts, batch.examples, self._experts))
            trajectory = joined(policy_parts, placement.feeds)
        with timer.measure("reward"):
            scores = [each.scores() for each in rolled]
            missing = never_filled(
                rolled[0].tokens,
                self._bundle.denoiser.config.mask_token_id,
                parts.settings.stop_ids,
            )
            # All processes need the scores that each computed for its own rows.
            correct, nfe, unfinished, cost = placement.gather(
                (
                    scores,
                    [each.nfe for each in rolled],
                    missing.any(axis=1),
                    None if trajectory.by_kind is None else placement.fetch(trajectory.cost),
                )
            )
            value = [
                self._reward(right, steps, parts.settings.gen_length, self._config.reward.alpha)
                for right, steps in zip(correct, nfe, strict=True)
            ]
        with timer.measure("update"):
            records, is_expert, group_rewards = trajectory.records, None, value[0]
            imitated = None
            assert records is not None  # The settings ask for them.
            if self._experts:
                expert_records = joined(expert_parts, placement.feeds).records
                assert expert_records is not None
                records, is_expert = with_experts(
                    records, expert_records, self._group, self._experts
                )
                merge = functools.partial(
                    merge_groups, group_size=self._group, num_experts=self._experts
                )
                group_rewards = merge(jnp.asarray(value[0]), jnp.asarray(value[1]))
                weight = self._imitation(state)
                if weight is not None:
                    imitated = merge(jnp.zeros(len(correct[0])), weight * correct[1])
                    imitated_share = jnp.sum(imitated > 0) / len(correct[1])
            advantages = group_advantages(
                jnp.asarray(group_rewards, jnp.float32), self._group + self._experts
            )
            of_rows = placement.global_rows((advantages.advantages, is_expert, imitated))
            with placement.active():
                state, metrics = parts.learner.update(state, records, *of_rows)
            jax.block_until_ready(state.params)
        return state, {
            "reward": np.mean(value[0]),
            "accuracy": np.mean(correct[0]),
            "nfe": np.mean(nfe[0]),
            "nfe_max": np.max(nfe[0]),
            "useful_forwards": trajectory.useful_forward_fraction,
            "unfinished": np.mean(unfinished),
            **({} if cost is None else {"cost": np.mean(cost)}),
            "groups_with_signal": advantages.signal_fraction,
            **({"expert_reward": np.mean(value[1])} if self._experts else {}),
            **({} if imitated is None else {"imitated": imitated_share}),
            **metrics,
        }

    def flops(self, metrics: Mapping[str, float]) -> float:
        # Of the policy's rollouts alone: its own network is small beside the denoiser, and the
        # forwards of experts are in no metric.
        config, parts = self._config, self._parts
        rows, prompt = config.rollout.prompts_per_step * self._group, config.task.prompt_length
        denoiser = self._bundle.denoiser.config
        return rows * row_flops(denoiser, parts.policy, parts.settings, prompt, metrics["nfe"])

    def _imitation(self, state: TrainState) -> Any:
        """Weight of the likelihood of right expert rollouts at this step; None where it is never
        wanted."""
        expert = self._config.expert
        if not expert.imitation:
            return None
        return jnp.where(state.step < expert.imitation_steps, expert.imitation, 0.0)

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        directory = workdir / "policy"
        if not jax.process_index():
            policies.save_policy(directory, self._parts.policy, state.params)
            write_policy_card(directory, self._config, workdir)
        return dataclasses.replace(self._bundle, policy=directory)
