"""Recipes: each binds a denoiser, a task and a learner to one way of training."""

from jax_unmask.recipes.base import Recipe
from jax_unmask.recipes.policy_grpo import PolicyGrpo
from jax_unmask.recipes.sft import Sft

RECIPES: dict[str, type[Recipe]] = {"policy_grpo": PolicyGrpo, "sft": Sft}

__all__ = ["RECIPES", "PolicyGrpo", "Recipe", "Sft"]
