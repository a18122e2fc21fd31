"""All recipes of the package have what `Recipe` asks for."""

from __future__ import annotations

import pytest

from jax_unmask import recipes
from jax_unmask.recipes.base import Recipe
from jax_unmask.settings import declared


@pytest.mark.parametrize("name", [each for each in recipes.RECIPES if each != "curriculum"])
def test_a_recipe_has_all_members_of_the_protocol(name):
    recipe = recipes.find(name)
    members = {*Recipe.__annotations__, *vars(Recipe)}
    missing = [each for each in members if not each.startswith("_") and not hasattr(recipe, each)]
    assert not missing
    assert set(recipe.shown) <= set(recipe.metrics)


@pytest.mark.parametrize("name", [each for each in recipes.RECIPES if each != "curriculum"])
def test_what_is_of_training_only_is_among_its_settings(name):
    defaults = recipes.defaults(name)
    keys = [f"{each.key}." for each in declared(defaults)]
    assert all(any(key.startswith(f"{only}.") for key in keys) for only in defaults.training_only)
