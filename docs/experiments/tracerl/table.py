"""Tables and a picture of the runs of launch/tracerl_study.sh.

    python docs/experiments/tracerl/table.py RUNS_DIR/tracerl-full START_DIR --picture=curves.png

START_DIR holds the evaluation (results.jsonl) of the model that the runs start from; there may be
several. Of a curriculum each stage that was
measured has its row. Accuracies are means over the seeds; their errors
are standard errors over seeds and problems together.
"""

import argparse
import collections
import json
import math
import pathlib

import numpy as np

# Iterations that make one point of a curve.
WINDOW = 5

LABELS = {"trace": "TraceRL", "random": "random masking", "coupled": "coupled masks"}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_of(directory):
    """{policy@block length: (accuracy, its standard error, NFE, tokens)} of the test problems.

    Results of earlier versions have no tokens.
    """
    return {
        f"{row['policy']}@{row['block_length']}": (
            row["accuracy"],
            row["accuracy_se"],
            row["nfe_mean"],
            *([row["tokens_mean"]] if "tokens_mean" in row else []),
        )
        for row in rows_of(directory / "results.jsonl")
        if row["split"] == "test"
    }


def seconds_of(directory):
    """Seconds per step, of each line of the timings."""
    rows = rows_of(directory / "timings.jsonl")
    before = [0, *(row["step"] for row in rows)]
    return [row["seconds/total"] / (row["step"] - b) for row, b in zip(rows, before, strict=False)]


def groups_of(runs):
    """{name: directories} of runs that differ in their seed alone."""
    groups = collections.defaultdict(list)
    for path in sorted(runs.glob("*/results.jsonl")):
        groups[path.parent.name.rpartition("-")[0]].append(path.parent)
    for path in sorted(runs.glob("*/*-*/results.jsonl")):  # Stages of a curriculum.
        name = path.parent.parent.name.rpartition("-")[0]
        groups[f"{name}, stage {int(path.parent.name[:2])}"].append(path.parent)
    return groups


def mean(values):
    return sum(values) / len(values)


def over_seeds(found):
    """Mean accuracy, its standard error, mean NFE and tokens of runs that differ in their seed."""
    accuracies, errors, *others = zip(*found, strict=True)
    centre, count = mean(accuracies), len(found)
    between = sum((x - centre) ** 2 for x in accuracies) / max(count - 1, 1) / count
    within = mean([error**2 for error in errors])  # The problems are the same for all seeds.
    return centre, math.sqrt(between + within), *map(mean, others)


def outcomes_of(directory):
    """{policy@block length: for each test problem, whether its answer is right}."""
    return {
        f"{row['policy']}@{row['block_length']}": np.load(directory / row["outcomes"])["correct"]
        for row in rows_of(directory / "results.jsonl")
        if row["split"] == "test"
    }


def compare(runs, one, other):
    """Prints differences in accuracy of two groups, each seed with the same seed of the other."""
    seeds = [path.parent.name.rpartition("-")[2] for path in runs.glob(f"{one}-*/results.jsonl")]
    pairs = [[outcomes_of(runs / f"{name}-{seed}") for name in (one, other)] for seed in seeds]
    for policy in pairs[0][0]:
        differences = np.array([1.0 * a[policy] - b[policy] for a, b in pairs])
        between = differences.mean(axis=1).var(ddof=1) / len(seeds) if len(seeds) > 1 else 0.0
        within = differences.mean(axis=0).var() / differences.shape[1]
        error = 100 * math.sqrt(between + within)
        mean = 100 * differences.mean()
        print(f"{one} - {other}, {len(seeds)} seeds, {policy}: {mean:+.1f} ± {error:.1f}")


def cell(accuracy, error, nfe, *tokens):
    length = "".join(f", {each:.1f} tokens" for each in tokens)
    return f"{100 * accuracy:.1f} ± {100 * error:.1f} @ {nfe:.2f}{length}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("starts", type=pathlib.Path, nargs="*")
    parser.add_argument("--picture", type=pathlib.Path)
    parser.add_argument("--drawn", nargs="*", help="what the picture shows (default: everything)")
    parser.add_argument("--compare", nargs=2, help="two names of runs: their difference instead")
    args = parser.parse_args()
    if args.compare:
        compare(args.runs, *args.compare)
        return
    groups = groups_of(args.runs)
    starts = {directory.name: results_of(directory) for directory in args.starts}
    results = {name: [results_of(each) for each in found] for name, found in groups.items()}
    measured = [*starts.values(), *(one for several in results.values() for one in several)]
    policies = sorted({policy for one in measured for policy in one})
    print("| training | seeds |", " | ".join(policies), "| tokens per step | states | s per step |")
    print("|---|--:|" + "--:|" * (len(policies) + 3))
    for name, found in starts.items():
        cells = [cell(*found[policy]) if policy in found else "" for policy in policies]
        print(f"| {name} | |", " | ".join(cells), "| | | |")
    curves = {}
    for name, directories in groups.items():
        found = results[name]
        cells = [
            cell(*over_seeds([each[policy] for each in found])) if policy in found[0] else ""
            for policy in policies
        ]
        if not (directories[0] / "metrics.jsonl").exists():  # Measured elsewhere than trained.
            print(f"| {name} | {len(directories)} |", " | ".join(cells), "| | | |")
            continue
        metrics = [rows_of(directory / "metrics.jsonl") for directory in directories]
        last = [row for rows in metrics for row in rows[-10:]]
        timings = sorted(second for each in directories for second in seconds_of(each))
        print(
            f"| {name} | {len(directories)} |",
            " | ".join(cells),
            # Supervised training writes nothing.
            f"| {mean([row['tokens_per_step'] for row in last]):.2f}"
            if "tokens_per_step" in last[0]
            else "| ",
            f"| {mean([row['states'] for rows in metrics for row in rows]):.0f}",
            f"| {timings[len(timings) // 2]:.1f} |",
        )
        if "accuracy" in last[0]:
            curves[name] = [[row["accuracy"] for row in rows] for rows in metrics]
        norms = [row["grad_norm"] for rows in metrics for row in rows[len(rows) // 2 :]]
        spread = math.sqrt(mean([(x - mean(norms)) ** 2 for x in norms]))
        print(f"<!-- {name}: gradient norm {mean(norms):.2f}, spread {spread:.2f} -->")
    if args.picture:
        draw({name: curves[name] for name in args.drawn or curves}, args.picture)


def draw(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
    marks = "osD^vPX"
    for (name, runs), colour, mark in zip(curves.items(), colours, marks, strict=False):
        for number, accuracies in enumerate(runs):
            points = [
                (start + (WINDOW - 1) / 2 + 1, 100 * mean(accuracies[start : start + WINDOW]))
                for start in range(0, len(accuracies) - WINDOW + 1, WINDOW)
            ]
            label = None if number else LABELS.get(name, name)
            places, heights = zip(*points, strict=True)
            axes.plot(places, heights, color=colour, marker=mark, markersize=4, label=label)
    axes.set_xlabel("iteration")
    axes.set_ylabel("accuracy of the rollouts (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title="a line per seed")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
