"""Default values of every config key: the one place where they are written down.

An experiment in `configs/` starts from `policy_grpo()`, `sft()`, `tracerl()` or `curriculum()` and
changes what differs. The defaults of `policy_grpo` and `tracerl` are the published ones for
LLaDA-8B-Instruct (arXiv 2512.09106, section 4, and 2509.06949, appendix B, with their public
configurations).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jax_unmask.config.policies import policy_grpo
from jax_unmask.config.shared import evaluation
from jax_unmask.config.supervised import sft, state_sft
from jax_unmask.config.tracerl import tracerl

RECIPES = ("policy_grpo", "sft", "state_sft", "tracerl")

__all__ = [
    "RECIPES",
    "curriculum",
    "evaluation",
    "policy_grpo",
    "sft",
    "state_sft",
    "tracerl",
]


def curriculum() -> ConfigDict:
    """Several trainings in a row; see `commands.curriculum`."""
    return ConfigDict({"recipe": "curriculum", "stages": ()})
