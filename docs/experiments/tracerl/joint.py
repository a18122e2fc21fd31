"""The table and the picture of the runs of launch/joint_study.sh.

    python docs/experiments/tracerl/joint.py RUNS_DIR/joint --picture=joint.png

Per task and training: the area under the envelope (see docs/evaluation.md), and the accuracy
at a given number of forwards, between settings as a mixture of them. Means over the training seeds,
with standard errors over seeds and problems together.
"""

import argparse
import collections
import json
import math
import pathlib

from jax_unmask.report import frontier

NAMES = {
    "start, heuristics": "none; all heuristics",
    "start": "none; the universal policy",
    "policy": "the policy alone",
    "denoiser, heuristics": "the denoiser alone; all heuristics",
    "denoiser": "the denoiser alone; the universal policy",
    "after": "one after the other",
    "joint": "joint",
}
AT = {"arithmetic": (2.5, 3.0, 4.0, 5.0, 6.0), "sudoku": (1.5, 2.0, 2.5, 3.0)}


def points_of(path, learned):
    """The operating points of learned policies, or of heuristics."""
    rows = map(json.loads, (path / "results.jsonl").read_text().splitlines())
    return [
        frontier.Point(
            row["method"] if not learned else "policy",
            tuple(row["settings"].items()),
            row["accuracy"],
            row["accuracy_se"],
            row["nfe_mean"],
            row["nfe_se"],
            row["n"],
        )
        for row in rows
        if row["split"] == "test" and row["policy"].startswith("learned:") == learned
    ]


def over_seeds(values, errors):
    """Mean of a value per seed, and its standard error; the problems are those of all seeds."""
    centre, count = sum(values) / len(values), len(values)
    between = sum((x - centre) ** 2 for x in values) / max(count - 1, 1) / count
    return centre, math.sqrt(between + sum(error**2 for error in errors) / count)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    args = parser.parse_args()
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    lengths = {}
    for path in sorted(args.runs.glob("*-measured")):
        task, name, *_ = path.name.split("-")
        row = json.loads((path / "results.jsonl").read_text().splitlines()[0])
        lengths[task] = row["gen_length"]
        found[task][name].append(points_of(path, learned=True))
        if heuristics := points_of(path, learned=False):
            found[task][f"{name}, heuristics"].append(heuristics)
    for task, runs in found.items():
        print(f"| {task} | seeds | area |", " | ".join(f"at {n:g}" for n in AT[task]), "|")
        print("|---|--:|--:|" + "--:|" * len(AT[task]))
        for name, label in NAMES.items():
            if name not in runs:
                continue
            budgets = frontier.budgets(lengths[task])
            areas = [frontier.area(points, *budgets) for points in runs[name]]
            cells = [f"{100 * over_seeds(areas, [0])[0]:.1f}"]
            if len(areas) > 1:
                cells[0] += f" ± {100 * over_seeds(areas, [0])[1]:.1f}"
            for nfe in AT[task]:
                at = [frontier.interpolate(points, nfe) for points in runs[name]]
                if None in at:
                    cells.append("")
                    continue
                mean, error = over_seeds([p.accuracy for p in at], [p.accuracy_se for p in at])
                cells.append(f"{100 * mean:.1f} ± {100 * error:.1f}")
            print(f"| {label} | {len(areas)} |", " | ".join(cells), "|")
        print()
    if args.picture:
        draw(found, args.picture)


def draw(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    colours = ("#999999", "#000000", "#E69F00", "#56B4E9", "#0072B2", "#CC79A7", "#009E73")
    for axes, (task, runs) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for (name, label), colour, mark in zip(NAMES.items(), colours, "xvsD^oP", strict=True):
            for number, points in enumerate(runs.get(name, ())):
                best = frontier.pareto(points)
                axes.plot(
                    [point.nfe for point in best],
                    [100 * point.accuracy for point in best],
                    color=colour,
                    marker=mark,
                    markersize=4,
                    linewidth=1,
                    label=None if number or axes is not figure.axes[0] else label,
                )
        axes.set(title=task, xlabel="denoiser forwards per response", ylabel="accuracy (%)")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, title="trained; decoded by")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
