"""Recipes: each binds a denoiser, a task and a learner to one way of training."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from jax_unmask.recipes.base import Recipe
from jax_unmask.recipes.policy_grpo import PolicyGrpo
from jax_unmask.recipes.sft import Sft
from jax_unmask.recipes.state_sft import StateSft
from jax_unmask.recipes.tracerl import TraceRl

RECIPES: dict[str, Callable[[ConfigDict, pathlib.Path], Recipe]] = {
    "policy_grpo": PolicyGrpo,
    "sft": Sft,
    "state_sft": StateSft,
    "tracerl": TraceRl,
}

__all__ = ["RECIPES", "PolicyGrpo", "Recipe", "Sft", "StateSft", "TraceRl"]
