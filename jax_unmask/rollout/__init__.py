"""The MDP of unmasking: one compiled loop and the trajectory that it produces."""

from jax_unmask.rollout.loop import rollout, row_keys
from jax_unmask.rollout.trajectory import Prompts, Records, RolloutSettings, Trajectory

__all__ = ["Prompts", "Records", "RolloutSettings", "Trajectory", "rollout", "row_keys"]
