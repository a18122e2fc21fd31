"""Gains of the shipped policies over the heuristics, as a table and a picture.

    python docs/experiments/gains.py sudoku arithmetic countdown --picture=gains.png

Reads docs/experiments/TASK/results.jsonl: full diffusion, test split, deterministic decoding. Each
policy is compared in two ways, for every training seed by itself, and the mean over seeds is shown:

* accuracy gained at equal forwards: its accuracy minus that of the heuristics' frontier at its NFE;
* forwards saved at equal accuracy: the frontier's NFE at its accuracy, minus its NFE ("at least"
  where a seed is more accurate than every heuristic).

The frontier is linear between neighbouring settings and taken on the same test problems, which
favours the heuristics. Standard errors cover training seeds and problems; those of two methods are
taken as independent, an upper bound, because both saw the same problems.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from jax_unmask.report.frontier import Point, compare, interpolate, pareto

HERE = pathlib.Path(__file__).parent
HEURISTICS = ("heuristic", "hand-written rule")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="sudoku, arithmetic, countdown")
    parser.add_argument("--picture", type=pathlib.Path, help="where to write the picture")
    args = parser.parse_args()
    print("| task | policy | accuracy % | NFE | accuracy gained at equal NFE | forwards saved |")
    print("|---|---|--:|--:|--:|--:|")
    panels = []
    for task in args.tasks:
        heuristics, learned = read(task)
        panels.append((task, heuristics, learned))
        frontier = pareto(point for points in heuristics.values() for point in points)
        for alpha, seeds in sorted(learned.items(), reverse=True):
            print(row(task, alpha, seeds, frontier))
    if args.picture:
        draw(panels, args.picture)


def read(task: str) -> tuple[dict[str, list[Point]], dict[float, list[Point]]]:
    """Points of a task: of heuristics by method, of policies by alpha (one point per seed)."""
    heuristics: dict[str, list[Point]] = {}
    learned: dict[float, list[Point]] = {}
    for line in (HERE / task / "results.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["split"] != "test" or entry["block_length"] != entry["gen_length"]:
            continue
        settings = tuple(entry["settings"].items())
        values = (entry[key] for key in ("accuracy", "accuracy_se", "nfe_mean", "nfe_se", "n"))
        point = Point(entry["method"], settings, *values)
        if entry["label"] in HEURISTICS:
            heuristics.setdefault(entry["method"], []).append(point)
        elif entry["settings"].get("distribution") == "threshold":
            alpha = float(entry["method"].rpartition("alpha")[2].partition("-")[0])
            learned.setdefault(alpha, []).append(point)
    return {name: averaged(points) for name, points in heuristics.items()}, learned


def averaged(points: Sequence[Point]) -> list[Point]:
    """One point per setting: policies that draw were measured with several sampling seeds."""
    by_setting: dict[object, list[Point]] = {}
    for point in points:
        by_setting.setdefault(point.settings, []).append(point)
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


def forwards_at(frontier: Sequence[Point], accuracy: float) -> tuple[float, float, float] | None:
    """(NFE, its standard error, accuracy per forward) of a frontier where it has this accuracy."""
    for low, high in itertools.pairwise(frontier):
        if low.accuracy <= accuracy <= high.accuracy:
            slope = (high.accuracy - low.accuracy) / (high.nfe - low.nfe)
            weight = (accuracy - low.accuracy) / (high.accuracy - low.accuracy)
            error = math.hypot(
                (1 - weight) * low.nfe_se + weight * high.nfe_se,
                ((1 - weight) * low.accuracy_se + weight * high.accuracy_se) / slope,
            )
            return low.nfe + (accuracy - low.accuracy) / slope, error, slope
    return None


def row(task: str, alpha: float, seeds: Sequence[Point], frontier: Sequence[Point]) -> str:
    gains = [compare(seed, interpolate(frontier, seed.nfe)) for seed in seeds]
    saved, errors, unreached = [], [], 0
    for seed in seeds:
        found = forwards_at(frontier, seed.accuracy)
        if found is None:
            # No heuristic is as accurate: at least the difference to the most accurate one.
            unreached += 1
            saved.append(frontier[-1].nfe - seed.nfe)
            errors.append(math.hypot(seed.nfe_se, frontier[-1].nfe_se))
        else:
            nfe, error, slope = found
            saved.append(nfe - seed.nfe)
            errors.append(math.hypot(seed.nfe_se, error, seed.accuracy_se / slope))
    cells = [
        task,
        f"alpha {alpha:g}",
        cell([p.accuracy for p in seeds], [p.accuracy_se for p in seeds], 100, "{:.1f}"),
        cell([p.nfe for p in seeds], [p.nfe_se for p in seeds], 1, "{:.2f}"),
        cell([c.gain for c in gains], [c.se for c in gains], 100, "{:+.1f}"),
        saved_cell(saved, errors, unreached),
    ]
    return f"| {' | '.join(cells)} |"


def saved_cell(saved: Sequence[float], errors: Sequence[float], unreached: int) -> str:
    if unreached == len(saved):
        return "no heuristic is as accurate"
    return ("at least " if unreached else "") + cell(saved, errors, 1, "{:+.2f}")


def cell(values: Sequence[float], errors: Sequence[float], scale: float, form: str) -> str:
    """Mean over training seeds ± the error over seeds and (shared) problems."""
    array = scale * np.array(values)
    between = array.var(ddof=1) / len(array) if len(array) > 1 else 0.0
    error = math.sqrt(between + float(np.mean(np.square(scale * np.array(errors)))))
    return f"{form.format(array.mean())} ± {form.replace('+', '').format(error)}"


def draw(panels: Sequence[tuple], path: pathlib.Path) -> None:
    """Frontiers in full diffusion: heuristics grey but the two best, learned policies in red."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    names = {"sudoku": "Sudoku, many solutions", "arithmetic": "Worked arithmetic"}
    colours = {"entropy_bounded": "#1f5fa8", "threshold": "#3a9bd0"}
    labels = {
        "entropy_bounded": "entropy-bounded (EB-Sampler)",
        "threshold": "threshold (Fast-dLLM)",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.5), sharey=True)
    for axis, (task, heuristics, learned) in zip(np.atleast_1d(axes), panels, strict=True):
        for method, points in sorted(heuristics.items(), key=lambda item: item[0] in colours):
            line = sorted(points, key=lambda p: (p.nfe, p.accuracy))
            axis.plot(
                [p.nfe for p in line],
                [100 * p.accuracy for p in line],
                color=colours.get(method, "#c4c4c4"),
                linewidth=1.4 if method in colours else 1.0,
                marker="o",
                markersize=2.5,
                label=labels.get(method, "_"),
                zorder=2 if method in colours else 1,
            )
        alphas = sorted(learned, reverse=True)
        x = [float(np.mean([p.nfe for p in learned[a]])) for a in alphas]
        y = [100 * float(np.mean([p.accuracy for p in learned[a]])) for a in alphas]
        axis.plot(x, y, color="#c8102e", marker="*", markersize=8, label="learned", zorder=3)
        for end, offset, side in ((0, (-7, -1), "right"), (-1, (-3, 6), "right")):
            axis.annotate(
                f"$\\alpha$={alphas[end]:g}",
                (x[end], y[end]),
                xytext=offset,
                textcoords="offset points",
                ha=side,
                fontsize=8,
                color="#c8102e",
            )
        axis.set_ylim(0, 108)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(names.get(task, task.capitalize()), fontsize=10)
        axis.set_xlabel("denoiser forwards per sequence", fontsize=9)
        axis.grid(color="#eeeeee")
        axis.spines[["top", "right"]].set_visible(False)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("accuracy %", fontsize=9)
    lines, texts = first.get_legend_handles_labels()
    lines.append(plt.Line2D([], [], color="#c4c4c4", marker="o", markersize=2.5))
    texts.append("other heuristics and hand-written rules")
    figure.legend(lines, texts, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
