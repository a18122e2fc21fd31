"""Floating-point operations of a rollout's forwards, counted from shapes."""

import dataclasses

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.flops import forward_flops, head_flops, layer_flops
from jax_unmask.policies.base import Policy
from jax_unmask.rollout.forwards import scored_positions
from jax_unmask.rollout.trajectory import RolloutSettings, Trajectory


@dataclasses.dataclass(frozen=True)
class RolloutFlops:
    """Operations of one row in one forward of each kind that a rollout has.

    Attributes:
        full: of a forward over the whole sequence (with cache "block": over the prompt).
        cached: of a forward that reads the cache; 0 without one.
    """

    full: int
    cached: int

    def executed(self, done: Trajectory) -> int:
        """Operations of all forwards that a rollout executed."""
        kinds = done.by_kind
        if kinds is None:
            return self.full * done.slots * int(done.forwards)
        full = self.full * kinds.full_rows * int(kinds.full_executed)
        return full + self.cached * done.slots * int(kinds.cached_executed)


def rollout_flops(
    config: DenoiserConfig, settings: RolloutSettings, prompt_length: int, scored: int
) -> RolloutFlops:
    """Matrix products of the denoiser in the forwards of a rollout; the policy counts nothing.

    `prompt_length` includes padding; `scored` are the canvas positions that a forward without a
    cache scores, see `rollout.scored_positions`.
    """
    length, cache = settings.gen_length, settings.cache
    whole = prompt_length + length
    if cache is None:
        return RolloutFlops(forward_flops(config, whole, scored), 0)
    full = forward_flops(config, whole, length)
    if cache.kind == "block":
        full = layer_flops(config, prompt_length, 1, prompt_length)
    window = cache.window(length, settings.block_length)
    read = layer_flops(config, window, window, window + whole)
    return RolloutFlops(full, read + head_flops(config, window))


def row_flops(
    config: DenoiserConfig,
    policy: Policy,
    settings: RolloutSettings,
    prompt_length: int,
    nfe: float,
) -> float:
    """Matrix products of the forwards that one row needs; the policy decides what is scored."""
    each = rollout_flops(config, settings, prompt_length, scored_positions(policy, settings))
    blocks, cache = settings.gen_length // settings.block_length, settings.cache
    if cache is None:
        shared = 1 - 1 / settings.prompt_rows if settings.shares_first() else 0
        return (nfe - shared) * each.full
    if cache.kind == "block":
        # The prompt once; and each block once more when it is done.
        prompts = settings.prompt_rows if settings.shares_prompts else 1
        return each.full / prompts + (nfe + blocks) * each.cached
    full: float = blocks
    if cache.refresh_every:
        full = max(blocks, nfe // cache.refresh_every)
    return full * each.full + max(nfe - full, 0) * each.cached
