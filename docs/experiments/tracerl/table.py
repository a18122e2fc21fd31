"""Tables and a picture of the runs of launch/tracerl_study.sh.

    python docs/experiments/tracerl/table.py RUNS_DIR/tracerl-full START_DIR --picture=curves.png

START_DIR holds the evaluation (results.jsonl) of the model that the runs start from. Accuracies are
means over the seeds; their errors are standard errors over seeds and problems together.
"""

import argparse
import collections
import json
import math
import pathlib

# Iterations that make one point of a curve.
WINDOW = 5


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_of(directory):
    """{policy: (accuracy, its standard error, NFE)} of the test problems."""
    return {
        row["policy"]: (row["accuracy"], row["accuracy_se"], row["nfe_mean"])
        for row in rows_of(directory / "results.jsonl")
        if row["split"] == "test"
    }


def mean(values):
    return sum(values) / len(values)


def over_seeds(found):
    """Mean accuracy, its standard error, mean NFE of runs that differ in their seed alone."""
    accuracies = [accuracy for accuracy, _, _ in found]
    centre, count = mean(accuracies), len(found)
    between = sum((x - centre) ** 2 for x in accuracies) / max(count - 1, 1) / count
    within = mean([error**2 for _, error, _ in found])  # The problems are the same for all seeds.
    return centre, math.sqrt(between + within), mean([nfe for _, _, nfe in found])


def cell(accuracy, error, nfe):
    return f"{100 * accuracy:.1f} ± {100 * error:.1f} @ {nfe:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("start", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    args = parser.parse_args()
    groups = collections.defaultdict(list)
    for directory in sorted(args.runs.iterdir()):
        if (directory / "results.jsonl").exists():
            groups[directory.name.rpartition("-")[0]].append(directory)
    start = results_of(args.start)
    policies = sorted(start)
    print("| training | seeds |", " | ".join(policies), "| tokens per step | states | s per step |")
    print("|---|--:|" + "--:|" * (len(policies) + 3))
    print("| start | |", " | ".join(cell(*start[policy]) for policy in policies), "| | | |")
    curves = {}
    for name, directories in groups.items():
        found = [results_of(directory) for directory in directories]
        cells = [cell(*over_seeds([each[policy] for each in found])) for policy in policies]
        metrics = [rows_of(directory / "metrics.jsonl") for directory in directories]
        last = [row for rows in metrics for row in rows[-10:]]
        timings = sorted(
            row["seconds/total"]
            for directory in directories
            for row in rows_of(directory / "timings.jsonl")
        )
        print(
            f"| {name} | {len(directories)} |",
            " | ".join(cells),
            f"| {mean([row['tokens_per_step'] for row in last]):.2f}",
            f"| {mean([row['states'] for rows in metrics for row in rows]):.0f}",
            f"| {timings[len(timings) // 2]:.1f} |",
        )
        curves[name] = [[row["accuracy"] for row in rows] for rows in metrics]
        norms = [row["grad_norm"] for rows in metrics for row in rows[len(rows) // 2 :]]
        spread = math.sqrt(mean([(x - mean(norms)) ** 2 for x in norms]))
        print(f"<!-- {name}: gradient norm {mean(norms):.2f}, spread {spread:.2f} -->")
    if args.picture:
        draw(curves, args.picture)


def draw(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
    for (name, runs), colour in zip(curves.items(), colours, strict=False):
        for number, accuracies in enumerate(runs):
            points = [
                (start + (WINDOW - 1) / 2 + 1, 100 * mean(accuracies[start : start + WINDOW]))
                for start in range(0, len(accuracies) - WINDOW + 1, WINDOW)
            ]
            axes.plot(*zip(*points, strict=True), color=colour, label=name if not number else None)
    axes.set_xlabel("iteration")
    axes.set_ylabel("accuracy of the rollouts (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
