"""The training loop, and the command `python -m jax_unmask.train` around it."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Mapping

import jax
from absl import flags
from ml_collections import ConfigDict

from jax_unmask import recipes, tasks
from jax_unmask.commands import command_line
from jax_unmask.commands.checks import check_reads, check_training, require_best_metric
from jax_unmask.environment.bundle import Bundle
from jax_unmask.environment.settings import RunSettings
from jax_unmask.learners.engine import TrainState
from jax_unmask.recipes import curriculum
from jax_unmask.recipes.base import Recipe
from jax_unmask.report.model_card import write_policy_card
from jax_unmask.runtime import agreement, compilation, terminal
from jax_unmask.runtime.checkpoints import Checkpoints
from jax_unmask.runtime.config import check_workdir, claim_workdir, flatten
from jax_unmask.runtime.divergence import Divergence, Untrained, lost_numbers, require_trained
from jax_unmask.runtime.exports import EXPORTS, places
from jax_unmask.runtime.files import local_path, read_json_rows
from jax_unmask.runtime.locks import DirectoryLock
from jax_unmask.runtime.metrics import METRICS, MetricWriter, WeightsAndBiases
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.preemption import Preemption
from jax_unmask.runtime.progress import Timer, leave_out_step, progress_bar
from jax_unmask.runtime.watch import Heartbeat, Profile, memory, utilisation
from jax_unmask.settings import exempt_keys, flat
from jax_unmask.tasks.data import BatchIterator

LOCK = "training.lock"

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
        FloatingPointError: the numbers of the training are not finite any more.
        KeyboardInterrupt: Ctrl-C ended it before; the step under way is saved.
        Untrained: the last steps, or all, updated nothing (`divergence.require_trained`).
    """
    agreement.require_same(agreement.of_run(flatten(config), workdir))
    with DirectoryLock(workdir, LOCK) as lock:
        lock.check()
        if recipes.is_curriculum(config):
            return curriculum.run(config, workdir, train, check_training, lock)
        return _train(config, workdir, lock)


def _train(config: ConfigDict, workdir: pathlib.Path, lock: DirectoryLock) -> bool:
    """`train` in one directory; takes the lock once the config has proved to run."""
    settings, measured = check_training(config)
    exempt = exempt_keys(settings)
    check_workdir(workdir, config, exempt=exempt)
    check_reads(settings)
    recipe = recipes.find(settings.recipe)(settings, workdir)
    data = recipe.data()
    lock.take()
    claim_workdir(workdir, config, exempt=exempt)
    with Checkpoints(workdir, settings.checkpoint) as checkpoints:
        state = _run(settings, workdir, recipe, data, checkpoints, lock, measured)
    if state is None:
        return False
    trained = recipe.finish(state, workdir)
    Placement().meet("exported")  # The first process writes what others may be about to read.
    if settings.eval.after_training:
        assert trained is not None  # `check_training` sees to it.
        from jax_unmask.evaluation import sweep

        with DirectoryLock(workdir, sweep.LOCK) as results:
            results.take()
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
    lock: DirectoryLock,
    measured: Callable[[Bundle], Mapping[str, float]] | None = None,
) -> TrainState | None:
    """The training loop. Returns the final state, or None if a signal ended it before.

    `measured` makes metrics of the denoiser as it is, every `eval.every` steps.
    """
    total, done, restored = config.train.steps, 0, None
    checkpoints.require_any()
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
        if done == total:
            logger.info("It is finished; a higher config.train.steps goes on from here.")
    # Barrier: processes that are still loading weights would time out in the first collective.
    Placement().meet("training begins")
    divergence = Divergence()
    divergence.see(done, state)
    _stop_if_diverged(divergence, done, state, {}, checkpoints)
    sinks: tuple[WeightsAndBiases, ...] = ()
    if config.log.wandb and not jax.process_index():
        sinks = (WeightsAndBiases(workdir, project="jax_unmask", config=flat(config)),)
    with (
        Preemption(config.checkpoint.grace_seconds) as preemption,
        MetricWriter(
            workdir,
            resume_step=done,
            lines=None if restored is None else restored.lines,
            tensorboard=config.log.tensorboard,
            sinks=sinks,
        ) as writer,
        progress_bar(total, initial=done, title=config.recipe) as progress,
        Heartbeat(workdir, config.watch.stall_seconds, ends=config.watch.end_stalled) as heartbeat,
        Profile(workdir, config.watch.profile_steps) as profile,
    ):
        timer = Timer(on_phase=heartbeat.enter)
        reported = done
        for step in range(done + 1, total + 1):
            heartbeat.begin(step)
            is_first = step == done + 1
            what = f"{config.recipe} with {config.model.path or 'a new denoiser'}"
            with timer.measure("data"):
                batch = next(data)
            with (
                profile.step(step),
                compilation.announced(what) if is_first else contextlib.nullcontext(),
            ):
                state, metrics = recipe.step(state, batch, timer)
                divergence.see(step, (state, metrics))
            if is_first:
                jax.block_until_ready(metrics)
                leave_out_step(progress)
            stop = preemption.requested(step)
            save = step % config.checkpoint.every == 0 or step == total or stop
            # A signal saves, but writes no line that an undisturbed run would not have.
            measures = measured is not None and step % config.eval.every == 0
            log = step % config.log.every == 0 or step == total or measures
            if save or log:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                lock.check_held()
            if measures and measured is not None:
                with timer.measure("evaluation"):
                    values |= measured(recipe.current(state))
            if log:
                writer.write(step, values)
                progress.set_postfix({name: values[name] for name in recipe.shown}, refresh=False)
                progress.update(step - progress.n)
            if save or log:
                _stop_if_diverged(divergence, step, state, values, checkpoints)
                require_best_metric(config, values)
            if save:
                with timer.measure("checkpoint"):
                    writer.sync()
                    checkpoints.save(
                        step,
                        params=state.params,
                        state=dataclasses.replace(state, params=None),
                        data=data.get_state(),
                        metrics=values,
                        lines=writer.lines,
                    )
            if log:
                timings = timer.report()
                flops = recipe.flops(values) * (step - reported)
                timings |= utilisation(flops, timings["seconds/total"]) | memory()
                writer.write_timings(step, timings)
                reported = step
            if stop and step < total:
                checkpoints.wait()  # Within the grace period, as the saving is.
                logger.info("Step %d of %d is saved; the same command goes on.", step, total)
                if preemption.signal == signal.SIGINT:
                    raise KeyboardInterrupt
                return None
    _require_trained(workdir, total)
    return state


def _require_trained(workdir: pathlib.Path, total: int) -> None:
    """Ends a run in error that did not learn to its end; all processes alike."""
    problem = ""
    if not jax.process_index():
        try:
            require_trained(read_json_rows(workdir / METRICS, "step", int), total)
        except Untrained as error:
            problem = str(error)
    if problem := Placement().broadcast(problem):
        raise Untrained(f"{workdir}: {problem}")


def _stop_if_diverged(
    divergence: Divergence,
    step: int,
    state: TrainState,
    values: dict[str, float],
    checkpoints: Checkpoints,
) -> None:
    """Ends a run whose numbers are lost, before a checkpoint or an export of them is written."""
    first = divergence.first_step()
    if first is None:
        return
    lost, count = lost_numbers(state)
    names = [name for name, value in values.items() if not math.isfinite(value)]
    where = [*names, f"{lost:,} of the {count:,} numbers of the training state"]
    checkpoints.wait()
    good = max((each for each in checkpoints.steps() if each < first), default=None)
    kept = "No checkpoint is from before."
    if good is not None:
        kept = f"The checkpoint {checkpoints.directory / str(good)} is from before, and good."
    began = f"diverged at step {first}" if first else "cannot begin"
    raise FloatingPointError(
        f"step {step}: training {began}; not finite are {', '.join(where)}. {kept} Nothing was "
        "exported. Train in a new workdir with a lower optimizer.lr or optimizer.grad_clip"
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
    config = flags.FLAGS.config
    is_measured = config.get("eval", {}).get("after_training")  # Which ends with a verdict.
    if is_finished and not is_measured and not jax.process_index():
        terminal.conclude(_verdict(config, workdir))
    if not is_finished:
        sys.exit(flags.FLAGS.preempted_status)


def _verdict(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """The changes of the metrics, and the commands that use the result."""
    rows = read_json_rows(workdir / METRICS, "step", int) if (workdir / METRICS).is_file() else []
    recipe = recipes.find(config.recipe)
    found = [
        f"{name} {rows[0][name]:.3g} at step {rows[0]['step']}, {rows[-1][name]:.3g} at step "
        f"{rows[-1]['step']}"
        for name in recipe.shown
        if rows and name in rows[0] and name in rows[-1]
    ]
    for kind, exported in places(recipe.trains, workdir, config.get("export")).items():
        if exported.is_dir():
            then = ["generate", f"{EXPORTS[kind].option}{exported}", f"--task={config.task.name}"]
            then += tasks.shown_problem(config.task.name, config.task.get("path"))
            if kind == "denoiser" and (sampling := _sampling(config)):
                then += [f"--gen_length={sampling[0]}", f"--block_length={sampling[1]}"]
            return terminal.verdict(found, places=f"Result: {exported}", then=then)
    return terminal.verdict(found, places=f"Result: {workdir}")


def _sampling(config: ConfigDict) -> tuple[int, int] | None:
    """Canvas and block length of a config."""
    lengths = config.get("rollout") or config.get("data") or {}
    length = lengths.get("gen_length")
    return None if length is None else (length, lengths.get("block_length") or length)


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
