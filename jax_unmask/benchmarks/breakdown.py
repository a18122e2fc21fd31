"""Shares of a training step's time: rollout, reward, update."""

import contextlib
import dataclasses
import pathlib
import statistics
import tempfile

import numpy as np
from ml_collections import ConfigDict

from jax_unmask import recipes
from jax_unmask.runtime import compilation
from jax_unmask.runtime.compilation import CompileTimes
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import ConfigError

PHASES = ("data", "rollout", "reward", "update", "other")


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Timings of training steps."""

    first_step_seconds: float  # It compiles, and is not part of the other times.
    seconds: list[float]  # Of each other step.
    seconds_per_step: float  # Their median.
    rollouts_per_step: int  # Canvases, those of experts included.
    rollouts_per_second: float | None  # By the time in phase "rollout"; None if no step is in it.
    phase_seconds: dict[str, float]  # Mean per step.
    shares: dict[str, float]  # Of the time of all steps; they add up to 1.
    programs_compiled: int  # By steps after the first; should be 0.
    nfe_mean: float | None  # Mean of the recipe's metric `nfe`; None without it.
    # Mean of its metric `useful_forwards`, executed row forwards that a row still needed.
    useful_forward_fraction: float | None


def measure_breakdown(config: ConfigDict, steps: int, compile_times: CompileTimes) -> Breakdown:
    """Takes one training step to compile, and `steps` that are timed; keeps nothing of them.

    Raises:
        ConfigError: the config makes no sense, or its recipe has no rollouts.
    """
    settings, recipe_class = recipes.read(config), recipes.find(config.recipe)
    if not settings.rows_at_once:
        problem = "its steps have no rollout to compare with the update"
        raise ConfigError("recipe", config.recipe, problem, "Give a config of another recipe")
    reports, metrics = [], []
    with tempfile.TemporaryDirectory(prefix="jax_unmask_bench_") as workdir:
        recipe_class.check(settings, pathlib.Path(workdir))  # Before the weights.
        recipe = recipe_class(settings, pathlib.Path(workdir))
        state, batches = recipe.init(), recipe.data()
        timer = Timer()
        for step in range(steps + 1):
            what = f"{config.recipe} with {settings.model.path or 'a new denoiser'}"
            with timer.measure("data"):
                batch = next(batches)
            with contextlib.nullcontext() if step else compilation.announced(what):
                state, values = recipe.step(state, batch, timer)
            reports.append(timer.report())
            if step == 0:
                programs = compile_times.programs
            else:
                metrics.append(values)
    first, *reports = reports
    seconds = [report["seconds/total"] for report in reports]
    phase = {name: sum(report.get(f"seconds/{name}", 0.0) for report in reports) for name in PHASES}
    phase["other"] = max(0.0, sum(seconds) - sum(phase.values()))
    rows = settings.rows

    def mean(name: str) -> float | None:
        known = all(name in values for values in metrics)
        return float(np.mean([values[name] for values in metrics])) if known else None

    return Breakdown(
        first_step_seconds=first["seconds/total"],
        seconds=seconds,
        seconds_per_step=statistics.median(seconds),
        rollouts_per_step=rows,
        rollouts_per_second=steps * rows / phase["rollout"] if phase["rollout"] else None,
        phase_seconds={name: value / steps for name, value in phase.items()},
        shares={name: value / sum(seconds) for name, value in phase.items()},
        programs_compiled=compile_times.programs - programs,
        nfe_mean=mean("nfe"),
        useful_forward_fraction=mean("useful_forwards"),
    )
