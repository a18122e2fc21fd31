"""Checks of a training before anything is loaded; those of all stages, before the first starts."""

import dataclasses
import fnmatch
import pathlib
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from jax_unmask import recipes
from jax_unmask.environment.bundle import check_weights
from jax_unmask.environment.settings import RunSettings
from jax_unmask.runtime.metrics import import_wandb
from jax_unmask.settings import ConfigError

if TYPE_CHECKING:
    from jax_unmask.commands.while_training import WhileTraining


def check_training(
    config: ConfigDict, model: str | None = None
) -> "tuple[RunSettings, WhileTraining | None]":
    """Settings of a training, once they are checked, and its measurements on the way if any.

    Args:
        config: the config.
        model: a denoiser of the same shape, where that of the config is not there yet.

    Raises:
        ConfigError: the first mistake; or the devices have no room for the training.
    """
    settings, measured = recipes.read(config, trains=True), None
    recipe = recipes.find(settings.recipe)
    if settings.eval.after_training and not recipe.trains:
        problem = f"recipe {settings.recipe!r} trains neither a denoiser nor a policy"
        remedy = "Set False, and evaluate what it writes afterwards"
        raise ConfigError("eval.after_training", True, problem, remedy)
    if settings.eval.after_training or settings.eval.every:  # Draws plots; training needs none.
        from jax_unmask.evaluation import candidates

        candidates.check(settings)
    if settings.eval.every:
        if recipe.current is None:
            remedy = "Set 0, and `eval.after_training` = True"
            problem = f"recipe {settings.recipe!r} trains no denoiser"
            raise ConfigError("eval.every", settings.eval.every, problem, remedy)
        from jax_unmask.commands.while_training import WhileTraining

        measured = WhileTraining(config)
    if settings.log.wandb and not jax.process_index():  # Only the first process writes to it.
        import_wandb()
    if settings.checkpoint.best_metric:
        on_the_way = ("eval_accuracy*", "eval_nfe*") if measured else ()
        path = settings.model.path if model is None else model
        shaped = dataclasses.replace(settings, model=dataclasses.replace(settings.model, path=path))
        require_best_metric(settings, (*recipe.metrics_of(shaped), *on_the_way))
    return settings, measured


def check_reads(settings: RunSettings) -> None:
    """Reads all that a training needs but weights, of which only the files are looked at.

    Raises:
        ConfigError, OSError, ValueError: the training could not begin.
    """
    with tempfile.TemporaryDirectory() as scratch:
        recipes.find(settings.recipe).check(settings, pathlib.Path(scratch))
    if settings.model.path and (settings.eval.after_training or settings.eval.every):
        from jax_unmask.evaluation.problems import check_problems

        check_problems(settings)
    check_weights(settings)


def require_best_metric(config: RunSettings, known: Iterable[str]) -> None:
    """Refuses to rank checkpoints by what is not measured."""
    metric = config.checkpoint.best_metric
    if metric and not any(fnmatch.fnmatchcase(metric, name) for name in known):
        raise ConfigError(
            "checkpoint.best_metric",
            metric,
            f"steps of recipe {config.recipe!r} with these settings have no such metric",
            f"Choose one of {', '.join(sorted(known))}",
        )
