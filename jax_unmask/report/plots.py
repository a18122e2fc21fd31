"""Pictures of frontiers. matplotlib is imported when a picture is drawn, and needs no display."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

from jax_unmask.report.results import (
    HEADINGS,
    HEURISTIC,
    RULE,
    Result,
    by_series,
    over_training_seeds,
)
from jax_unmask.runtime.files import atomic_write

# Okabe & Ito's palette, distinguishable with any colour vision; without its yellow, which is too
# faint for lines on white. Lines also differ in their marker and dashes.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_RULE_COLOUR = "#777777"
_LINE_MARKERS = ("o", "s", "^", "v", "D", "<", ">")
_DASHES = ("-", "--", ":", "-.")
_POINT_MARKERS = ("*", "P", "X", "h", "d", "8", "p")
_LINE = {"linewidth": 1.3, "markersize": 3.5}
_POINT = {"linestyle": "none", "markersize": 9, "markeredgecolor": "black", "markeredgewidth": 0.8}
_LOG_ABOVE = 64
"""NFE beyond which the axis is logarithmic: settings are then spread over decades."""


def draw_frontier(
    path: str | os.PathLike[str], results: Sequence[Result], *, title: str, cost: bool = False
) -> None:
    """Draws accuracy against NFE, one panel per block length, and writes a PNG.

    Heuristics are lines over their settings, learned policies large markers. Bars are one standard
    error.

    Args:
        path: the PNG to write.
        results: results of one split; training seeds are averaged.
        title: heading.
        cost: against what the forwards cost instead, in forwards over the whole sequence: with a
            cache, forwards are not alike.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("there are no results to draw; evaluate at least one policy")
    # Not pyplot: a bare figure needs no display and leaves the caller's backend alone.
    from matplotlib.figure import Figure

    results = over_training_seeds(results)
    label = "NFE (denoiser forwards per sequence)"
    if cost:
        results, label = [_at_cost(result) for result in results], "cost (whole forwards)"
    blocks = sorted({result.block_length for result in results})
    styles = _styles(by_series(results))
    # The legend has a column of its own, so that it can never cover data.
    figure = Figure(figsize=(5.0 * len(blocks) + 3.0, 4.4), layout="constrained")
    grid = figure.add_gridspec(1, len(blocks) + 1, width_ratios=[5.0] * len(blocks) + [2.4])
    axes: list[Any] = []
    for column, block in enumerate(blocks):
        axis = figure.add_subplot(grid[0, column], sharey=axes[0] if axes else None)
        axes.append(axis)
        here = [result for result in results if result.block_length == block]
        for name, members in by_series(here).items():
            _draw_series(axis, members, styles[name])
        _decorate(axis, here, block, label, is_first=column == 0)
    _draw_legend(figure.add_subplot(grid[0, -1]), styles)
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    atomic_write(path, picture.getvalue())


def _at_cost(result: Result) -> Result:
    """The result with its cost in the place of its NFE."""
    point = dataclasses.replace(result.point, nfe=result.cost, nfe_se=result.cost_se)
    return dataclasses.replace(result, point=point)


def _styles(series: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Style of each series; lines and points count separately."""
    styles: dict[tuple[str, str], dict[str, Any]] = {}
    counts = {True: 0, False: 0}
    for label, method in series:
        is_line = label in (HEURISTIC, RULE)
        k = counts[is_line]
        counts[is_line] += 1
        turn = k + k // len(_COLOURS)  # Another marker where colours begin anew.
        if is_line:
            style = {
                "color": _RULE_COLOUR if label == RULE else _COLOURS[k % len(_COLOURS)],
                "linestyle": _DASHES[turn % len(_DASHES)],
                "marker": _LINE_MARKERS[turn % len(_LINE_MARKERS)],
                **_LINE,
            }
        else:
            # Learned policies start from the other end of the palette.
            colour = _COLOURS[-2 - k % (len(_COLOURS) - 1)]
            style = {
                "color": colour,
                "marker": _POINT_MARKERS[turn % len(_POINT_MARKERS)],
                **_POINT,
            }
        styles[label, method] = style
    return styles


def _draw_series(axis: Any, results: Sequence[Result], style: dict[str, Any]) -> None:
    points = sorted((result.point for result in results), key=lambda point: point.nfe)
    axis.errorbar(
        [point.nfe for point in points],
        [point.accuracy for point in points],
        yerr=[point.accuracy_se for point in points],
        xerr=[point.nfe_se for point in points],
        elinewidth=0.8,
        zorder=2 if style["linestyle"] != "none" else 3,
        **style,
    )


def _decorate(
    axis: Any, results: Sequence[Result], block: int, label: str, *, is_first: bool
) -> None:
    full = block == results[0].gen_length
    axis.set_title(f"block length {block}" + (" (full diffusion)" if full else ""), fontsize=10)
    axis.set_xlabel(label)
    if max(result.point.nfe for result in results) > _LOG_ABOVE:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    if is_first:
        axis.set_ylabel("accuracy")
        axis.yaxis.set_major_formatter("{x:.0%}")
    else:
        axis.tick_params(labelleft=False)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_legend(axis: Any, styles: dict[tuple[str, str], dict[str, Any]]) -> None:
    """A legend in groups, each under its label."""
    from matplotlib.lines import Line2D

    axis.axis("off")
    entries: list[tuple[str, Any]] = []
    heads = {}
    for (label, method), style in styles.items():
        if label not in heads:
            heads[label] = len(entries)
            entries.append((HEADINGS.get(label, label), Line2D([], [], linestyle="none")))
        entries.append((method, Line2D([], [], **style)))
    names, handles = zip(*entries, strict=True)
    legend = axis.legend(
        handles, names, loc="center left", fontsize=8, frameon=False, borderaxespad=0.0
    )
    for head in heads.values():
        legend.get_texts()[head].set_weight("bold")
