"""Measures policies on held-out problems: `python -m jax_unmask.eval`."""

import json
import logging
import pathlib
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from jax_unmask import policies, recipes
from jax_unmask.commands import command_line
from jax_unmask.denoisers.orbax_files import has_orbax_files
from jax_unmask.environment.bundle import eval_splits, load_bundle, load_denoiser_config
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation import axes, candidates, dry_run, reporting, sweep
from jax_unmask.evaluation.problems import check_problems
from jax_unmask.policies.checkpoint import CONFIG as POLICY_CONFIG
from jax_unmask.policies.checkpoint import MadeFor
from jax_unmask.report.model_card import write_policy_card
from jax_unmask.report.results import Result
from jax_unmask.runtime import agreement
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.checkpoints import Checkpoints
from jax_unmask.runtime.config import RECORD, flatten, nested, require_directory
from jax_unmask.runtime.exports import EXPORTS
from jax_unmask.runtime.files import local_path
from jax_unmask.runtime.locks import DirectoryLock
from jax_unmask.settings import FlagError, Settings, flat

_NAMING = ("reward.alpha", "seed")

logger = logging.getLogger(__name__)


def evaluate(
    config: ConfigDict, workdir: pathlib.Path, checkpoint: pathlib.Path | None = None
) -> list[Result]:
    """Measures the policies of a config, and one that was trained with it.

    Args:
        config: a full config, see `recipes.config`.
        workdir: receives results.jsonl, outcomes/, summary.md, frontier.png and report.html; and
            policy/, if `checkpoint` is a training checkpoint.
        checkpoint: see the flag of the same name.
    """
    run = agreement.of_run(flatten(config), workdir)
    agreement.require_same(run | {"--checkpoint": str(checkpoint)})
    with DirectoryLock(workdir, sweep.LOCK) as lock:
        lock.check()
        return _evaluate(config, workdir, checkpoint, lock)


def _evaluate(
    config: ConfigDict, workdir: pathlib.Path, checkpoint: pathlib.Path | None, lock: DirectoryLock
) -> list[Result]:
    require_directory(workdir)
    if checkpoint is not None and not checkpoint.is_dir():
        remedy = "Give one that there is"
        raise FlagError("checkpoint", str(checkpoint), "it is not a directory", remedy)
    config, trained = for_evaluation(config), None
    settings = recipes.read(config)
    candidates.check(settings)  # Mistakes show before anything large is loaded.
    lock.take()
    if checkpoint is not None:
        trains_denoiser = "denoiser" in recipes.find(config.recipe).trains
        if trains_denoiser:
            exported = checkpoint / EXPORTS["denoiser"].directory
            config.model.path = str(exported if exported.is_dir() else checkpoint)
            if (beside := checkpoint / EXPORTS["policy"].directory).is_dir():
                trained = beside  # Trained with the denoiser, see recipe "joint".
        else:
            config.update_from_flattened_dict(_recorded(config, checkpoint))
        settings = recipes.read(config)
        if not trains_denoiser:
            trained = policy_directory(settings, checkpoint, workdir)
            candidates.candidates(settings, trained=trained)
    if not settings.eval.axes:
        check_problems(settings)
        bundle = load_bundle(settings, splits=tuple(eval_splits(settings)))
        return sweep.run(settings, bundle, workdir, trained=trained)
    # Every combination of the axes, one after the other, into one report.
    varied = _varied(config)
    for settings, _ in varied:
        candidates.candidates(settings, trained=trained)
        check_problems(settings)  # Data of all of them, before the weights of any.
    curve_files = reporting.curve_files(settings, workdir)
    swept = []
    for settings, values in varied:
        bundle = load_bundle(settings, splits=())
        swept.append(sweep.measure_all(settings, bundle, workdir, trained=trained, varied=values))
    if not jax.process_index():
        reporting.write(swept, workdir, curve_files, settings)
    return [result for part in swept for result in part.results]


def for_evaluation(config: ConfigDict) -> ConfigDict:
    """A copy of the config in which settings that only training uses have their defaults.

    So a policy can be measured where it could not be trained, such as on a longer canvas.
    """
    recipes.require_one_training(config)
    config = config.copy_and_resolve_references()
    defaults, known = recipes.defaults(config.recipe), flatten(config)
    within = tuple(f"{key}." for key in defaults.training_only)
    found = {k: v for k, v in flat(defaults).items() if k in known and f"{k}.".startswith(within)}
    with config.ignore_type():
        config.update_from_flattened_dict(found)
    if "rollout" in config and config.rollout.gen_length % max(config.rollout.block_length, 1):
        config.rollout.block_length = config.rollout.gen_length  # `eval.block_lengths` counts.
    return config


def _varied(config: ConfigDict) -> list[tuple[RunSettings, dict[str, Any]]]:
    """Settings of every combination of the axes, with their values."""
    return [
        (recipes.read(for_evaluation(each.config)), each.values)
        for each in axes.combinations(config)
    ]


def list_measurements(config: ConfigDict, *, speed: float | None, nfe: int | None) -> str:
    """The measurements of `evaluate` as text; reads policies and counts problems.

    `speed` is in row forwards per second, for an estimate of the time; `nfe` as in
    `dry_run.planned`.
    """
    config = for_evaluation(config)
    candidates.check(recipes.read(config))
    return dry_run.table(dry_run.planned(_varied(config), nfe=nfe), speed)


def _recorded(config: ConfigDict, checkpoint: pathlib.Path) -> dict[str, Any]:
    """The settings of the checkpoint's own run that name its policy in tables and plots."""
    for place in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        if (place / RECORD).is_file():
            saved = json.loads((place / RECORD).read_text(encoding="utf-8"))
            return {key: saved[key] for key in _NAMING if key in saved and key in flatten(config)}
    return {}


def _settings_of_run(run: pathlib.Path) -> Settings | None:
    """The settings of a training by its record; None without one that can be read."""
    try:
        return recipes.parse(nested(json.loads((run / RECORD).read_text(encoding="utf-8"))))
    except (FileNotFoundError, ValueError) as error:
        logger.warning("The policy's files have the settings of this evaluation: %s", error)
        return None


def policy_directory(config: Any, checkpoint: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """The policy directory of a checkpoint; a training checkpoint is exported to workdir/policy.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is none of what `--checkpoint` takes, or its policy is not the config's.
    """
    if (checkpoint / POLICY_CONFIG).is_file():
        return checkpoint
    recipe = recipes.find(config.recipe)
    if recipe.build_policy is None:
        raise ValueError(
            f"checkpoint {checkpoint}: recipe {config.recipe!r} has no `build_policy`, which makes "
            f"the policy of a checkpoint; give the directory that it exported ({POLICY_CONFIG})"
        )
    run, step = checkpoint, None
    if checkpoint.name.isdecimal() and has_orbax_files(checkpoint):
        run, step = checkpoint.absolute().parents[1], int(checkpoint.name)
    placement = placements.for_rollouts(config)
    with Checkpoints(run, config.checkpoint, read_only=True) as checkpoints:
        best = "best" if config.checkpoint.best_metric else "latest"
        which = best if step is None else step
        policy = recipe.build_policy(config, load_denoiser_config(config))
        like = placement.everywhere(jax.eval_shape(policy.init_params, jax.random.key(0)))
        step, params = checkpoints.restore_params(which, like=like)
    logger.info("Took the policy of step %d of %s.", step, run)
    directory = workdir / EXPORTS["policy"].directory
    if not jax.process_index():
        trained_with = _settings_of_run(run) or config
        policies.save_policy(directory, policy, params, MadeFor.all_of(trained_with))
        write_policy_card(directory, trained_with, run)
    placement.meet("policy")  # All are going to read it.
    return directory


def main(argv: list[str]) -> None:
    """Runs the command."""
    command_line.begin(argv)
    values = flags.FLAGS
    with command_line.clear_errors():
        if values.dry_run:
            print(list_measurements(values.config, speed=values.speed, nfe=values.nfe), end="")
            return
        checkpoint = None if values.checkpoint is None else local_path(values.checkpoint)
        if values.workdir is None:
            raise FlagError("workdir", None, "it is missing", "Give the directory for the results")
        workdir = local_path(values.workdir)
        command_line.join_processes()
        evaluate(values.config, workdir, checkpoint)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the command."""
    command_line.define_config_flag(values)
    flags.DEFINE_string("workdir", None, "Where to write the results.", flag_values=values)
    flags.DEFINE_string(
        "checkpoint",
        None,
        "What to measure beside the policies of config.eval: a policy directory, the workdir of a "
        "training run (its best checkpoint if it keeps one, else its latest), or one checkpoint of "
        "it; with a config of a recipe that trains denoisers, a denoiser or its run's workdir.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "dry_run", False, "List what would be measured; no weights are read.", flag_values=values
    )
    flags.DEFINE_float(
        "speed",
        None,
        "With --dry_run: row forwards per second, for an estimate of the time (jax_unmask.bench "
        "measures them: batch_size / seconds per forward).",
        1e-9,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "nfe",
        None,
        "With --dry_run: forwards that a row needs where that depends on the denoiser (default: "
        "half the canvas).",
        1,
        flag_values=values,
    )
    command_line.define_process_flags(values)
