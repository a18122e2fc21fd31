"""Recipe "policy_grpo": an unmasking policy learns against a frozen denoiser."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jax_unmask import policies
from jax_unmask.evaluation.bundle import load_bundle
from jax_unmask.learners.advantages import group_advantages
from jax_unmask.learners.experts import ExpertPolicy, merge_groups, with_experts
from jax_unmask.learners.policy_grpo import PolicyLearner
from jax_unmask.learners.state import TrainState
from jax_unmask.recipes.base import Metrics, build_optimizer
from jax_unmask.rollout import Prompts, RolloutSettings, Trajectory, rollout, row_keys
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks import data, rewards

_ONLY_AT_INIT = ("initial_bias", "candidate_attention_init")


def build_policy(config: ConfigDict) -> policies.LearnedPolicy:
    """The policy of `config.policy` (its weights apart)."""
    return policies.LearnedPolicy(
        network=policies.NetworkConfig(**dict(config.policy.network)),
        distribution=config.policy.distribution,
        context=config.policy.context,
        dpls_stop_logit=config.policy.dpls_stop_logit,
    )


class PolicyGrpo:
    """GRPO of an unmasking policy (Jazbec et al., arXiv 2512.09106).

    Args:
        config: see `jax_unmask.config.policy_grpo`; already validated.
        workdir: receives `policy/` (safetensors) at the end.
    """

    shown = ("reward", "accuracy", "nfe")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        del workdir
        self._config = config
        self._bundle = load_bundle(config)
        self._policy = build_policy(config)
        self._group = config.rollout.group_size
        self._experts = config.expert.count
        self._settings = RolloutSettings(
            gen_length=config.rollout.gen_length,
            block_length=config.rollout.block_length,
            temperature=config.rollout.temperature,
            record=True,
            vocab_chunk=config.rollout.vocab_chunk,
        )
        if self._experts:
            expert, self._expert_params = policies.parse_policy(config.expert.policy)
            self._expert = ExpertPolicy(expert, self._policy.needs)
            self._expert_settings = RolloutSettings(
                gen_length=config.rollout.gen_length,
                block_length=config.expert.block_length,
                temperature=config.rollout.temperature,
                record=True,
                vocab_chunk=config.rollout.vocab_chunk,
            )
        learner = config.learner
        steps = learner.updates_per_batch * learner.minibatches
        self._learner = PolicyLearner(
            policy=self._policy,
            optimizer=build_optimizer(config, steps),
            epsilon=learner.clip,
            updates_per_batch=learner.updates_per_batch,
            minibatches=learner.minibatches,
            chunk_size=learner.chunk_size,
            entropy_coefficient=learner.entropy_coefficient,
            group_size=self._group,
            num_experts=self._experts,
        )
        self._reward = rewards.REWARDS[config.reward.kind]

    def init(self) -> TrainState:
        key = jax.random.key(self._config.seed)
        if self._config.policy.init_from is None:
            params = self._policy.init_params(key, self._settings.gen_length)
        else:
            params = self._initial_params(self._config.policy.init_from)
        return self._learner.init(params, jax.random.fold_in(key, 1))

    def _initial_params(self, directory: str) -> Any:
        """Weights of a saved policy, which must have the network of this config."""
        saved, params = policies.load_policy(directory)
        ours, theirs = (dataclasses.asdict(p.network) for p in (self._policy, saved))
        different = [
            f"{name} ({theirs.get(name)!r} there, {value!r} here)"
            for name, value in ours.items()
            # What a network starts from does not matter once it has started.
            if theirs.get(name) != value and name not in _ONLY_AT_INIT
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

    def data(self) -> data.BatchIterator:
        config = self._config
        return data.prompt_batches(
            self._bundle.task,
            "train",
            self._bundle.tokenizer,
            batch_size=config.rollout.prompts_per_step,
            prompt_length=config.task.prompt_length,
            seed=config.seed,
            truncate=config.task.truncate_prompts,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )

    def step(
        self, state: TrainState, batch: Any, timer: Timer
    ) -> tuple[TrainState, Metrics]:
        key = state.step_key()
        with timer.measure("rollout"):
            trajectory = self._roll_out(self._policy, state.params, self._settings, batch, key)
            parts = [(trajectory, self._group)]
            if self._experts:
                parts.append((self._roll_out_experts(batch, key), self._experts))
            fetched = [jax.device_get((part.tokens, part.nfe)) for part, _ in parts]
        with timer.measure("reward"):
            correct = [
                self._check(batch.examples, tokens, size)
                for (tokens, _), (_, size) in zip(fetched, parts, strict=True)
            ]
            value = [
                self._reward(
                    right, nfe, self._settings.gen_length, self._config.reward.alpha
                )
                for right, (_, nfe) in zip(correct, fetched, strict=True)
            ]
        with timer.measure("update"):
            records, is_expert, group_rewards = trajectory.records, None, value[0]
            if self._experts:
                records, is_expert = with_experts(
                    trajectory.records, parts[1][0].records, self._group, self._experts
                )
                group_rewards = merge_groups(
                    jnp.asarray(value[0]), jnp.asarray(value[1]), self._group, self._experts
                )
            advantages = group_advantages(
                jnp.asarray(group_rewards, jnp.float32), self._group + self._experts
            )
            state, metrics = self._learner.update(
                state, records, advantages.advantages, is_expert
            )
            jax.block_until_ready(state.params)
        return state, {
            "reward": np.mean(value[0]),
            "accuracy": np.mean(correct[0]),
            "nfe": np.mean(fetched[0][1]),
            "nfe_max": np.max(fetched[0][1]),
            "useful_forwards": float(
                np.sum(fetched[0][1]) / (len(value[0]) * trajectory.forwards)
            ),
            "unfinished": np.mean(
                (fetched[0][0] == self._bundle.denoiser.config.mask_token_id).any(axis=1)
            ),
            "groups_with_signal": advantages.signal_fraction,
            **({"expert_reward": np.mean(value[1])} if self._experts else {}),
            **metrics,
        }

    def finish(self, state: TrainState, workdir: pathlib.Path) -> None:
        directory = workdir / "policy"
        policies.save_policy(directory, self._policy, state.params)
        if self._config.eval.after_training:
            from jax_unmask.evaluation import sweep  # Draws plots; training needs none of it.

            sweep.run(self._config, self._bundle, workdir, trained=directory)

    def _roll_out(
        self, policy: Any, params: Any, settings: RolloutSettings, batch: Any, key: Any
    ) -> Trajectory:
        """Rolls out one group per prompt; the rows of a group are contiguous."""
        prompts: Prompts = jax.tree.map(
            lambda leaf: np.repeat(leaf, self._group, axis=0), batch.prompts
        )
        return self._run(policy, params, settings, prompts, key)

    def _roll_out_experts(self, batch: Any, key: Any) -> Trajectory:
        prompts: Prompts = jax.tree.map(
            lambda leaf: np.repeat(leaf, self._experts, axis=0), batch.prompts
        )
        # Another stream than the policy's rows; it matters to experts that draw.
        key = jax.random.fold_in(key, 2**31)
        return self._run(self._expert, self._expert_params, self._expert_settings, prompts, key)

    def _run(
        self, policy: Any, params: Any, settings: RolloutSettings, prompts: Prompts, key: Any
    ) -> Trajectory:
        bundle = self._bundle
        keys = row_keys(key, prompts.tokens.shape[0])
        return rollout(
            bundle.denoiser, bundle.params, policy, params, prompts, keys, settings
        )

    def _check(self, examples: Any, tokens: np.ndarray, size: int) -> np.ndarray:
        """Scores of the rows of each example's `size` rollouts: float [len(examples) * size]."""
        responses = self._bundle.tokenizer.decode_batch(tokens)
        repeated = [example for example in examples for _ in range(size)]
        return np.asarray(self._bundle.task.check_batch(repeated, responses), np.float32)
