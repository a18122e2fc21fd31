"""Gains of the shipped policies over the heuristics, as tables and a picture.

    python docs/experiments/gains.py sudoku arithmetic countdown word_problems --picture=gains.png

Reads docs/experiments/TASK/results.jsonl: full diffusion, test split, deterministic decoding. Of
each policy for one task the first table has each alpha, compared in two ways, for every training
seed by itself, and the mean over seeds is shown:

* accuracy gained at equal forwards: its accuracy minus that of the heuristics' frontier at its NFE;
* forwards saved at equal accuracy: the frontier's NFE at its accuracy, minus its NFE ("at least"
  where a seed is more accurate than every heuristic).

The frontier is linear between neighbouring settings and taken on the same test problems, which
favours the heuristics, as do hand-written rules among them. Standard errors cover training seeds
and problems; those of two methods are taken as independent, an upper bound, because both saw the
same problems.

The second table has areas (docs/evaluation.md): of heuristics, of these with hand-written rules, of
the policies for one task with the standard error over training seeds, and of `universal`.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_unmask.report import plots, results, tables
from jax_unmask.report.frontier import (
    Point,
    area,
    budgets,
    compare,
    interpolate,
    pareto,
    saving,
)

HERE = pathlib.Path(__file__).parent
UNIVERSAL = "universal"
HEURISTICS = ("heuristic", "hand-written rule")
NAMES = {
    "sudoku": "Sudoku, many solutions",
    "arithmetic": "Worked arithmetic",
    "word_problems": "Word problems",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="sudoku, arithmetic, countdown, word_problems")
    parser.add_argument("--picture", type=pathlib.Path, help="where to write the picture")
    args = parser.parse_args()
    measured = {task: read(task) for task in args.tasks}
    print("| task | alpha | accuracy % | NFE | accuracy gained at equal NFE | forwards saved |")
    print("|---|--:|--:|--:|--:|--:|")
    for task, (heuristics, learned) in measured.items():
        frontier = pareto(heuristics[""] + heuristics["rules"])
        for alpha, seeds in sorted(by_alpha(learned).items(), reverse=True):
            print(row(task, alpha, seeds, frontier))
    print()
    print("| area in % | heuristics | heuristics and rules | a policy of its own | `universal` |")
    print("|---|--:|--:|--:|--:|")
    for task, (heuristics, learned) in measured.items():
        print(areas(task, heuristics, learned))
    if args.picture:
        draw(args.tasks, args.picture)


def rows(task: str) -> list[dict[str, Any]]:
    """Measurements of heuristics, and of policies that act deterministically."""
    lines = (HERE / task / "results.jsonl").read_text().splitlines()
    return [
        entry
        for entry in map(json.loads, lines)
        if (entry["split"], entry["block_length"]) == ("test", entry["gen_length"])
        and (entry["label"] in HEURISTICS or entry["settings"].get("distribution") == "threshold")
    ]


Learned = dict[tuple[str, int | None], list[Point]]


def read(task: str) -> tuple[dict[str, list[Point]], Learned]:
    """Points of a task: of heuristics and of rules, and of policies by name and training seed."""
    heuristics: dict[str, list[Point]] = {"": [], "rules": []}
    learned: Learned = {}
    for entry in rows(task):
        settings = tuple(entry["settings"].items())
        values = (entry[key] for key in ("accuracy", "accuracy_se", "nfe_mean", "nfe_se", "n"))
        point = Point(entry["method"], settings, *values)
        if entry["label"] in HEURISTICS:
            heuristics["" if entry["label"] == results.HEURISTIC else "rules"].append(point)
        else:
            learned.setdefault((entry["method"], entry["training_seed"]), []).append(point)
    return {name: averaged(points) for name, points in heuristics.items()}, learned


def by_alpha(learned: Learned) -> dict[float, list[Point]]:
    """A point per training seed for each alpha: policies for one task, without a scale."""
    found: dict[float, list[Point]] = {}
    for (name, _), points in learned.items():
        for point in points if name != UNIVERSAL else ():
            settings = dict(point.settings)
            if "scale" not in settings:
                found.setdefault(float(settings["alpha"]), []).append(point)
    return found


def areas(task: str, heuristics: dict[str, list[Point]], learned: Learned) -> str:
    low, high = budgets(next(entry["gen_length"] for entry in rows(task)))
    every = [heuristics[""], heuristics[""] + heuristics["rules"]]
    own = [area(points, low, high) for (name, _), points in learned.items() if name != UNIVERSAL]
    cells = [
        task,
        *(f"{100 * area(points, low, high):.1f}" for points in every),
        cell(own, [0.0] * len(own), 100, "{:.1f}"),
        f"{100 * area(learned[UNIVERSAL, None], low, high):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def averaged(points: Sequence[Point]) -> list[Point]:
    """One point per setting: policies that draw were measured with several sampling seeds."""
    by_setting: dict[object, list[Point]] = {}
    for point in points:
        by_setting.setdefault(point.identity, []).append(point)
    return [
        Point(
            same[0].method,
            same[0].settings,
            float(np.mean([p.accuracy for p in same])),
            same[0].accuracy_se,
            float(np.mean([p.nfe for p in same])),
            same[0].nfe_se,
            same[0].n,
        )
        for same in by_setting.values()
    ]


def row(task: str, alpha: float, seeds: Sequence[Point], frontier: Sequence[Point]) -> str:
    gains = [compare(seed, interpolate(frontier, seed.nfe)) for seed in seeds]
    is_slow = all(math.isfinite(each.gain) for each in gains)
    cells = [
        task,
        f"{alpha:g}",
        cell([p.accuracy for p in seeds], [p.accuracy_se for p in seeds], 100, "{:.1f}"),
        cell([p.nfe for p in seeds], [p.nfe_se for p in seeds], 1, "{:.2f}"),
        cell([c.gain for c in gains], [c.se for c in gains], 100, "{:+.1f}")
        if is_slow
        else "no heuristic is as fast",
        tables.saved_text(saving(seeds, frontier)),
    ]
    return f"| {' | '.join(cells)} |"


def cell(values: Sequence[float], errors: Sequence[float], scale: float, form: str) -> str:
    """Mean over training seeds ± the error over seeds and (shared) problems."""
    array = scale * np.array(values)
    between = array.var(ddof=1) / len(array) if len(array) > 1 else 0.0
    error = math.sqrt(between + float(np.mean(np.square(scale * np.array(errors)))))
    return f"{form.format(array.mean())} ± {form.replace('+', '').format(error)}"


def draw(tasks: Sequence[str], path: pathlib.Path) -> None:
    """Frontiers in full diffusion, as `jax_unmask.eval` draws them; PNG, SVG and PDF."""
    panels = [
        (NAMES.get(task, task.capitalize()), results.collect(rows(task), lambda row: None))
        for task in tasks
    ]
    plots.draw_panels(path, panels)


if __name__ == "__main__":
    main()
