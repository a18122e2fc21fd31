"""Rollouts recorded step by step, for the report's viewer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from jax_unmask.denoisers import Denoiser, Params
from jax_unmask.policies import LearnedPolicy
from jax_unmask.policies.base import Needs, Observing, Policy
from jax_unmask.rollout import Prompts, RolloutSettings, Trajectory, Watcher, rollout
from jax_unmask.runtime.placement import to_host


def record(
    denoiser: Denoiser,
    denoiser_params: Params,
    policy: Policy,
    policy_params: Any,
    prompts: Prompts,
    keys: Array,
    settings: RolloutSettings,
    watch: Watcher | None = None,
) -> tuple[Trajectory, Float[Array, "T B L"] | None]:
    """Rolls out as `rollout.rollout` with the same arguments does, with records.

    At temperature 0 they hold what the denoiser says of the whole canvas, otherwise of what the
    policy reads.

    Returns:
        (the trajectory, the policy's probability of filling each position at each step), as NumPy
        arrays; no probabilities for policies that have none.
    """
    settings = dataclasses.replace(settings, record=True)
    # Which tokens are drawn depends on which positions are scored: those that the policy reads.
    watched = policy if settings.temperature > 0 else Observing(policy, Needs(canvas=True))
    trajectory = rollout(
        denoiser, denoiser_params, watched, policy_params, prompts, keys, settings, watch
    )
    probability = None
    if isinstance(policy, LearnedPolicy):
        assert trajectory.records is not None  # They were asked for.
        # Step by step, as the rollout did: all at once would need the memory of all steps.
        probability = jax.jit(
            lambda params, obs: jax.lax.map(lambda o: policy.fill_probabilities(params, o), obs)
        )(policy_params, trajectory.records.obs)
    return to_host((trajectory, probability))
