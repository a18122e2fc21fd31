"""The training loop, and the command `python -m jax_unmask.train` around it."""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
import sys
import time

import jax
from absl import flags
from ml_collections import ConfigDict

from jax_unmask import recipes
from jax_unmask.commands import command_line, curriculum
from jax_unmask.environment.settings import RunSettings
from jax_unmask.learners.engine import TrainState
from jax_unmask.recipes.base import Recipe
from jax_unmask.report.model_card import write_policy_card
from jax_unmask.runtime.checkpoints import Checkpoints
from jax_unmask.runtime.config import check_workdir, claim_workdir
from jax_unmask.runtime.files import local_path
from jax_unmask.runtime.metrics import MetricWriter, WeightsAndBiases
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.preemption import Preemption
from jax_unmask.runtime.progress import Timer, progress_bar
from jax_unmask.runtime.watch import Heartbeat, Profile, memory, utilisation
from jax_unmask.settings import ConfigError, declared, flat
from jax_unmask.tasks.data import BatchIterator

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains to `config.train.steps`, continuing from the workdir's last checkpoint.

    Args:
        config: a full config, see `recipes.config`.
        workdir: receives config.json, metrics.jsonl, timings.jsonl, tensorboard/, checkpoints/ and
            what the recipe exports; that of a curriculum receives a directory per stage.

    Returns:
        Whether training is finished; False if a signal ended it before.

    Raises:
        ValueError, OSError: the config, the model or the data cannot be used as they are; before
            anything is compiled.
        FloatingPointError: a metric is not finite any more.
    """
    if config.get("recipe") == curriculum.RECIPE:
        return curriculum.run(config, workdir, train)
    settings = recipes.read(config)
    if settings.eval.after_training:
        from jax_unmask.evaluation import candidates  # Draws plots; training needs none of it.

        candidates.check(settings)
    exempt = tuple(each.key for each in declared(settings) if each.is_exempt)
    check_workdir(workdir, config, exempt=exempt)
    recipe = recipes.find(config.recipe)(settings, workdir)
    data = recipe.data()
    claim_workdir(workdir, config, exempt=exempt)
    with Checkpoints(workdir, settings.checkpoint) as checkpoints:
        state = _run(settings, workdir, recipe, data, checkpoints)
    if state is None:
        return False
    trained = recipe.finish(state, workdir)
    Placement().meet("exported")  # The first process writes what others may be about to read.
    if settings.eval.after_training:
        from jax_unmask.evaluation import sweep

        sweep.run(settings, trained, workdir, trained=trained.policy)
        if trained.policy is not None and not jax.process_index():
            write_policy_card(trained.policy, settings, workdir)
        Placement().meet("evaluated")
    return True


def _run(
    config: RunSettings,
    workdir: pathlib.Path,
    recipe: Recipe,
    data: BatchIterator,
    checkpoints: Checkpoints,
) -> TrainState | None:
    """The training loop. Returns the final state, or None if a signal ended it before."""
    total, done, restored = config.train.steps, 0, None
    if checkpoints.steps():
        like = recipe.like()
        restored = checkpoints.restore(like.params, dataclasses.replace(like, params=None))
    if restored is None:
        # Bound to its devices, as a restored state is: another binding is another program to
        # compile.
        state = jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), recipe.init())
    else:
        done = restored.step
        state = dataclasses.replace(restored.state, params=restored.params)
        data.set_state(restored.data)
        logger.info("Continuing %s at step %d of %d.", workdir, done, total)
    # Barrier: processes that are still loading weights would time out in the first collective.
    Placement().meet("training begins")
    sinks: tuple[WeightsAndBiases, ...] = ()
    if config.log.wandb:
        sinks = (WeightsAndBiases(workdir, project="jax_unmask", config=flat(config)),)
    with (
        Preemption(config.checkpoint.grace_seconds) as preemption,
        MetricWriter(
            workdir, resume_step=done, tensorboard=config.log.tensorboard, sinks=sinks
        ) as writer,
        progress_bar(total, initial=done, title=config.recipe) as progress,
        Heartbeat(workdir, config.watch.stall_seconds, ends=config.watch.end_stalled) as heartbeat,
        Profile(workdir, config.watch.profile_steps) as profile,
    ):
        timer = Timer(on_phase=heartbeat.enter)
        reported = done
        for step in range(done + 1, total + 1):
            heartbeat.begin(step)
            with profile.step(step):
                with timer.measure("data"):
                    batch = next(data)
                state, metrics = recipe.step(state, batch, timer)
            stop = preemption.requested(step)
            save = step % config.checkpoint.every == 0 or step == total or stop
            # A signal saves, but writes no line that an undisturbed run would not have.
            log = step % config.log.every == 0 or step == total
            if save or log:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if log:
                writer.write(step, values)
                progress.set_postfix({name: values[name] for name in recipe.shown}, refresh=False)
                progress.update(step - progress.n)
            if save or log:
                _stop_at_nan(step, values)
                _require_best_metric(config, values)
            if save:
                with timer.measure("checkpoint"):
                    writer.sync()
                    checkpoints.save(
                        step,
                        params=state.params,
                        state=dataclasses.replace(state, params=None),
                        data=data.get_state(),
                        metrics=values,
                    )
            if log:
                timings = timer.report()
                flops = recipe.flops(values) * (step - reported)
                timings |= utilisation(flops, timings["seconds/total"]) | memory()
                writer.write_timings(step, timings)
                reported = step
            if stop and step < total:
                checkpoints.wait()  # Within the grace period, as the saving is.
                return None
    return state


def _stop_at_nan(step: int, values: dict[str, float]) -> None:
    """Ends a run whose numbers are lost, before a checkpoint of them replaces a good one."""
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"step {step}: {', '.join(broken)} is not finite. The last checkpoint is from before; "
            "continue with a lower optimizer.lr or optimizer.grad_clip in a new workdir."
        )


def _require_best_metric(config: RunSettings, values: dict[str, float]) -> None:
    """Refuses to rank checkpoints by what is not measured."""
    metric = config.checkpoint.best_metric
    if metric and metric not in values:
        raise ConfigError(
            "checkpoint.best_metric",
            metric,
            f"recipe {config.recipe!r} has no such metric",
            f"Choose one of {', '.join(sorted(values))}",
        )


def main(argv: list[str]) -> None:
    """Runs the command."""
    command_line.begin(argv)
    start = time.perf_counter()
    with command_line.clear_errors():
        workdir = local_path(flags.FLAGS.workdir or command_line.default_workdir("config"))
        command_line.join_processes()
        is_finished = train(flags.FLAGS.config, workdir)
    logger.info("%s: %.0f s.", workdir, time.perf_counter() - start)
    if not is_finished:
        sys.exit(flags.FLAGS.preempted_status)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the command."""
    command_line.define_config_flag(values)
    flags.DEFINE_string(
        "workdir", None, "Directory of the run (default: runs/NAME_OF_CONFIG).", flag_values=values
    )
    flags.DEFINE_integer(
        "preempted_status",
        0,
        "Exit status of a run that SIGTERM ended early, for schedulers that take 0 for finished.",
        flag_values=values,
    )
    command_line.define_process_flags(values)
