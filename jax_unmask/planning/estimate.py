"""Estimated time of a step: its operations, over the speed that devices are assumed to reach."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jax_unmask import policies
from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.recipes.base import row_flops
from jax_unmask.recipes.policy_grpo import build_parts
from jax_unmask.recipes.tracerl import build_settings
from jax_unmask.rollout import RolloutSettings, scored_positions
from jax_unmask.rollout.flops import rollout_flops
from jax_unmask.runtime.accelerators import Accelerator

ASSUMED_UTILISATION = 0.4
"""Part of the peak that is taken for reached."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Matrix products of a step, in operations over all devices.

    Attributes:
        nfe: forwards that a row is assumed to need; 0 for recipes without rollouts.
        rollout: of the rollouts.
        update: of the update, its backward pass included.
    """

    nfe: int
    rollout: float
    update: float

    def seconds(self, device: Accelerator, devices: int) -> tuple[float, float]:
        """Seconds of rollout and update at `ASSUMED_UTILISATION`, were nothing ever waited for."""
        speed = device.flops * devices * ASSUMED_UTILISATION
        return self.rollout / speed, self.update / speed


def work(config: ConfigDict, denoiser: DenoiserConfig, nfe: int | None = None) -> Work:
    """Counts the work of a step.

    Args:
        config: a config that can be planned.
        denoiser: its denoiser.
        nfe: forwards that a row needs; half the canvas by default. The trace of a response has a
            state for each (over `learner.shrink`); with block attention, one forward of an update
            has a state of every block.
    """
    if config.recipe == "sft":
        return Work(0, 0.0, 3.0 * config.data.batch_size * row_flops(config, denoiser))
    rollouts = config.rollout
    nfe = nfe or rollouts.gen_length // 2
    rows = rollouts.prompts_per_step * rollouts.group_size
    if config.recipe == "policy_grpo":
        rows += rollouts.prompts_per_step * config.expert.count
        parts = build_parts(config)
        rolled = rows * _row(config, denoiser, parts.policy, parts.settings, nfe)
        # The policy's own network is small beside the denoiser, which is not trained.
        return Work(nfe, rolled, 0.0)
    policy, _ = policies.parse_policy(rollouts.policy)
    settings = build_settings(config, denoiser, (denoiser.eos_token_id,))
    rolled = rows * _row(config, denoiser, policy, settings, nfe)
    states, forward = nfe / config.learner.shrink, row_flops(config, denoiser)
    if denoiser.attention_block is not None:
        # A clean copy of the response stands beside its states, for the other blocks to see.
        states = -(-states // (rollouts.gen_length // rollouts.block_length))
        forward *= 2
    models = 2 if config.value.enabled else 1
    return Work(nfe, rolled, 3.0 * models * config.learner.passes * rows * states * forward)


def _row(
    config: ConfigDict,
    denoiser: DenoiserConfig,
    policy: policies.Policy,
    settings: RolloutSettings,
    nfe: int,
) -> float:
    """Operations of the rollout of one row."""
    scored = scored_positions(policy, settings)
    each = rollout_flops(denoiser, settings, config.task.prompt_length, scored)
    blocks = settings.gen_length // settings.block_length
    if settings.cache is None:
        return float(nfe * each.full)
    if settings.cache.kind == "block":
        # The prompt once; and each block once more when it is done.
        return float(each.full + (nfe + blocks) * each.cached)
    opened = blocks
    if settings.cache.refresh_every:
        opened = max(blocks, nfe // settings.cache.refresh_every)
    return float(opened * each.full + max(nfe - opened, 0) * each.cached)
