"""Accuracy against measured time per sequence, at several batch sizes, with and without a cache.

    python docs/experiments/milliseconds.py --picture=milliseconds.png 1=RUN 8=RUN 64=RUN

Each RUN is the workdir of an evaluation, measured with as many rows at a time as the number says.
Of every policy, block length and cache the settings are shown that are best at their time.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import defaultdict
from typing import Any

import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="BATCH=RUN", help="rows at a time, and workdir")
    parser.add_argument("--picture", type=pathlib.Path, help="where to write the picture")
    args = parser.parse_args()
    panels = {}
    for batch, run in (each.split("=", 1) for each in args.runs):
        lines = (pathlib.Path(run) / "results.jsonl").read_text().splitlines()
        panels[batch] = by_series([json.loads(line) for line in lines])
    print("| rows at a time | policy | cache | accuracy % @ ms per sequence |")
    print("|--:|---|---|---|")
    for batch, series in panels.items():
        for (name, cache), points in series.items():
            shown = ", ".join(f"{100 * accuracy:.1f} @ {ms:.3g}" for ms, accuracy in points)
            print(f"| {batch} | {name} | {cache} | {shown} |")
    if args.picture:
        draw(panels, args.picture)


def by_series(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(ms per sequence, accuracy) of each (policy and blocks, cache), best at their time."""
    found = defaultdict(list)
    for row in rows:
        whole = row["block_length"] == row["gen_length"]
        blocks = "whole canvas" if whole else f"blocks of {row['block_length']}"
        point = 1000 * row["seconds_per_sequence"], row["accuracy"]
        found[f"{row['method']}, {blocks}", row["cache"]].append(point)
    return {key: pareto(points) for key, points in sorted(found.items())}


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no faster one equals, fastest first."""
    best: list[tuple[float, float]] = []
    for ms, accuracy in sorted(points):
        if not best or accuracy > best[-1][1]:
            best.append((ms, accuracy))
    return best


def draw(panels: dict[str, dict], path: pathlib.Path) -> None:
    """One panel per batch size: a colour per policy and blocks, dashed with a cache."""
    names = sorted({name for series in panels.values() for name, _ in series})
    size = 4.6 * len(panels), 4.4
    figure, (axes,) = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (batch, series) in zip(axes, panels.items(), strict=True):
        for (name, cache), points in series.items():
            plain = cache == "none"
            axis.plot(
                *zip(*((ms, 100 * accuracy) for ms, accuracy in points), strict=True),
                color=f"C{names.index(name)}",
                linestyle="-" if plain else "--",
                marker="o" if plain else "s",
                markersize=4,
                label=name if plain else f"{name}, {cache} cache",
            )
        axis.set(xlim=(0, None), xlabel="ms per sequence", title=f"{batch} at a time")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
