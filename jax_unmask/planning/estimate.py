"""Estimated time of a step: its operations, over the speed that devices are assumed to reach."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jax_unmask import policies
from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.recipes.policy_grpo import build_parts
from jax_unmask.recipes.sft import step_flops
from jax_unmask.recipes.tracerl import build_settings, update_flops
from jax_unmask.rollout.flops import row_flops
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
        return Work(0, 0.0, step_flops(config, denoiser))
    rollouts, prompt = config.rollout, config.task.prompt_length
    nfe = nfe or rollouts.gen_length // 2
    rows = rollouts.prompts_per_step * rollouts.group_size
    if config.recipe == "policy_grpo":
        rows += rollouts.prompts_per_step * config.expert.count
        parts = build_parts(config, denoiser)
        each = row_flops(denoiser, parts.policy, parts.settings, prompt, nfe)
        # The policy's own network is small beside the denoiser, which is not trained.
        return Work(nfe, rows * each, 0.0)
    policy, _ = policies.parse_policy(rollouts.policy)
    settings = build_settings(config, denoiser, (denoiser.eos_token_id,))
    states, tokens = nfe / config.learner.shrink, rollouts.gen_length
    if denoiser.attention_block is not None:
        states = -(-states // (rollouts.gen_length // rollouts.block_length))
    return Work(
        nfe,
        rows * row_flops(denoiser, policy, settings, prompt, nfe),
        update_flops(config, denoiser, rows * states, rows * tokens),
    )
