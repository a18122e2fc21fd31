"""All recipes of the package have what `Recipe` asks for."""

import pytest

from jax_unmask import recipes
from jax_unmask.recipes.base import Recipe
from jax_unmask.recipes.sft import Sft
from jax_unmask.settings import ConfigError, declared


@pytest.mark.parametrize("name", [each for each in recipes.RECIPES if each != "curriculum"])
def test_a_recipe_of_the_package_is_planned_and_shows_metrics(name):
    recipe = recipes.find(name)
    assert issubclass(recipe, Recipe) and recipe.blueprint and recipe.work
    assert recipe.shown and set(recipe.shown) <= set(recipe.metrics)


@pytest.mark.parametrize("name", [each for each in recipes.RECIPES if each != "curriculum"])
def test_what_is_of_training_only_is_among_its_settings(name):
    defaults = recipes.defaults(name)
    keys = [f"{each.key}." for each in declared(defaults)]
    assert all(any(key.startswith(f"{only}.") for key in keys) for only in defaults.training_only)


class TrainsOneWord(Sft):
    trains = "denoiser"


class WithoutMetrics:
    defaults, trains, step = Sft.defaults, Sft.trains, Sft.step


@pytest.mark.parametrize(
    ("recipe", "key"), [(TrainsOneWord, "trains"), (WithoutMetrics, "metrics")]
)
def test_a_recipe_that_lacks_a_member_is_refused_by_name(recipe, key, monkeypatch):
    monkeypatch.setattr(recipes, "RECIPES", lambda name: recipe)
    with pytest.raises(ConfigError, match=rf"recipe = 'mine'.* attribute {key}\b"):
        recipes.find("mine")
