"""The MDP of unmasking: one compiled loop and the trajectory that it produces."""

from jax_unmask.rollout.buckets import by_length, trimmed
from jax_unmask.rollout.caching import Cache, parse_cache
from jax_unmask.rollout.checks import check_rollout
from jax_unmask.rollout.forwards import scored_positions
from jax_unmask.rollout.loop import rollout, row_keys
from jax_unmask.rollout.trajectory import (
    Prompts,
    Records,
    RolloutSettings,
    Trajectory,
    Watcher,
    joined,
    never_filled,
)

__all__ = [
    "Cache",
    "Prompts",
    "Records",
    "RolloutSettings",
    "Trajectory",
    "Watcher",
    "by_length",
    "check_rollout",
    "joined",
    "never_filled",
    "parse_cache",
    "rollout",
    "row_keys",
    "scored_positions",
    "trimmed",
]
