"""Recipes: each file is a way of training, with its config, its steps and what the planner reads.

    from jax_unmask import recipes

    config = recipes.config("policy_grpo")  # A ConfigDict of its defaults, to be changed.

Importing this package imports no recipe.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from jax_unmask.notation import Names, NotationError
from jax_unmask.settings import ConfigError, SettingError, Settings, from_config, to_config

if TYPE_CHECKING:
    from jax_unmask.environment.settings import RunSettings
    from jax_unmask.recipes.base import Recipe
    from jax_unmask.runtime.accelerators import Accelerator

RECIPES = Names(
    "recipe",
    {
        "policy_grpo": "jax_unmask.recipes.policy_grpo.PolicyGrpo",
        "policy_environments": "jax_unmask.recipes.policy_environments.PolicyEnvironments",
        "tracerl": "jax_unmask.recipes.tracerl.TraceRl",
        "joint": "jax_unmask.recipes.joint.Joint",
        "sft": "jax_unmask.recipes.sft.Sft",
        "state_sft": "jax_unmask.recipes.state_sft.StateSft",
        "curriculum": "jax_unmask.recipes.curriculum.Curriculum",
    },
)


def find(name: str) -> "type[Recipe]":
    """The recipe of a short name or an import path, `package.module.Name`.

    Raises:
        ConfigError: there is no such recipe.
    """
    try:
        found: type[Recipe] = RECIPES(name)
    except NotationError as error:
        raise ConfigError("recipe", name, error.problem, "Correct it") from error
    if not hasattr(found, "defaults"):
        raise ConfigError("recipe", name, "its class has no attribute defaults", "Name a recipe")
    if _is_of_curricula(found):
        return found
    found = _completed(found)
    lacking = [each for each in ("metrics", "trains") if not hasattr(found, each)]
    if lacking := [*lacking, *sorted(found.__abstractmethods__)]:
        problem = f"its class has no attribute {', '.join(lacking)}"
        remedy = "Give it what `jax_unmask.recipes.base.Recipe` asks for"
        raise ConfigError("recipe", name, problem, remedy)
    if not isinstance(found.trains, tuple):
        remedy = 'Let it be a tuple, such as ("denoiser",)'
        raise ConfigError("recipe", name, "its class attribute trains is no tuple", remedy)
    return found


@functools.cache
def _completed(found: type) -> "type[Recipe]":
    """A class with the defaults of the optional members that it lacks."""
    from jax_unmask.recipes.base import Recipe

    if issubclass(found, Recipe):
        return found
    own = {"__module__": found.__module__, "__doc__": found.__doc__}
    return type(found.__name__, (found, Recipe), own)


def _is_of_curricula(found: Any) -> bool:
    from jax_unmask.recipes.curriculum import CurriculumSettings

    return isinstance(found.defaults, CurriculumSettings)


def defaults(name: str) -> "RunSettings":
    """The settings of a recipe at their defaults."""
    return dataclasses.replace(find(name).defaults, recipe=name)


def is_curriculum(config: Any) -> bool:
    """Whether a config is of several trainings.

    Raises:
        ConfigError: it names no recipe, or one that there is not.
    """
    return _is_of_curricula(find(_name(config)))


def require_one_training(config: Any) -> None:
    """Raises a `ConfigError` for the config of a curriculum, and for one without a recipe."""
    if is_curriculum(config):
        problem = "it is of several trainings, and this is done with one"
        remedy = "Give the experiment file of one of its `stages`, with what that changes"
        raise ConfigError("recipe", config.recipe, problem, remedy)


def config(name: str) -> Any:
    """The `ConfigDict` of a recipe's settings, for experiment files to change.

    Args:
        name: a short name, or an import path.
    """
    return to_config(defaults(name))


def parse(config: Any) -> Settings:
    """The settings of a config, also of a curriculum; what it runs on is not looked at.

    Raises:
        ConfigError: the first mistake, with full key, value and remedy.
    """
    return from_config(defaults(_name(config)), config)


def read(
    config: Any,
    device: "Accelerator | None" = None,
    *,
    trains: bool = False,
    nfe: int | None = None,
) -> "RunSettings":
    """Checks a config and makes the settings of its recipe of it.

    Args:
        config: a `ConfigDict` that began as `recipes.config(...)`.
        device: type of the devices, for the choice of a mesh; by default this machine's.
        trains: whether a training for which the devices have no room is an error.
        nfe: forwards that a row is assumed to need, for the choice of a mesh.

    Raises:
        ConfigError: the first mistake, with full key, value and remedy. Checks that need the model
            or the data are made where those are loaded.
    """
    require_one_training(config)
    settings = from_config(defaults(config.recipe), config)
    try:
        from jax_unmask.recipes import layout  # Loads the denoisers.

        settings = layout.choose_mesh(settings, device, refuses=trains, nfe=nfe)
        settings.check_devices()
    except SettingError as error:
        raise error if isinstance(error, ConfigError) else error.within("") from error
    return settings


def _name(config: Any) -> str:
    """The recipe that a config names."""
    if not config.get("recipe"):
        known = "Choose one of " + ", ".join(RECIPES)
        raise ConfigError("recipe", config.get("recipe"), "it names no recipe", known)
    return str(config["recipe"])


__all__ = [
    "RECIPES",
    "config",
    "defaults",
    "find",
    "is_curriculum",
    "parse",
    "read",
    "require_one_training",
]
