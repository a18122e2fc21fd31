"""Pictures of frontiers, for a README or a paper. matplotlib is imported when one is drawn."""

import dataclasses
import io
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jax_unmask.report import frontier
from jax_unmask.report.results import HEURISTIC, RULE, TRAINED, Result, over_training_seeds
from jax_unmask.runtime.files import atomic_write

FORMATS = ("png", "svg", "pdf")
METHODS = (
    "threshold",
    "entropy_bounded",
    "factor",
    "top_confidence",
    "margin",
    "random",
    "left_to_right",
    "low_confidence",
    "cumulated_entropy",
    "frontier_threshold",
    "conflict_free",
    "reconsider",
    "frontier_told",
)
"""Heuristics whose colours are the same in every picture and page."""

# Okabe & Ito's palette, distinguishable with any colour vision; without its yellow, which is too
# faint for lines on white, and its vermilion, which is close to the colour of learned policies.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#5B4B8A", "#000000")
_MARKERS = ("o", "s", "^", "v", "D", "<", ">")
_LEARNED, _GREY = "#C8102E", "#C4C4C4"
_BEST = 2
_TOLD = ("alpha", "scale", "nfe")  # What one policy is told: its points are one line.
_ALPHA = re.compile(r"alpha ?(?P<value>[\d.]+)$")


def colour_index(method: str) -> int:
    """Number of a heuristic's colour, fixed by its name."""
    name = method.partition(",")[0]  # Without the cache.
    known = METHODS.index(name) if name in METHODS else sum(map(ord, name))
    return known % len(_COLOURS)


def draw_frontier(
    path: str | os.PathLike[str], results: Sequence[Result], *, title: str, cost: bool = False
) -> None:
    """Draws accuracy against NFE, one panel per block length.

    Args:
        path: the PNG to write; SVG and PDF are written beside it.
        results: results of one split; training seeds are averaged.
        title: heading.
        cost: against what the forwards cost instead, in forwards over the whole sequence: with a
            cache, forwards are not alike.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("there are no results to draw; evaluate at least one policy")
    panels = []
    for block in sorted({result.block_length for result in results}):
        here = [result for result in results if result.block_length == block]
        full = " (full diffusion)" if block == here[0].gen_length else ""
        panels.append((f"block length {block}{full}", here))
    label = "cost (whole forwards)" if cost else "denoiser forwards per sequence"
    draw_panels(path, panels, title=title, label=label, cost=cost)


def draw_panels(
    path: str | os.PathLike[str],
    panels: Sequence[tuple[str, Sequence[Result]]],
    *,
    title: str = "",
    label: str = "denoiser forwards per sequence",
    cost: bool = False,
) -> None:
    """Draws panels of a heading and results each, side by side.

    Heuristics are grey but for the two that are most often the best one; hand-written rules are
    dotted. Learned policies are red; those that act alike are joined. Bars are one standard error.

    Args: as of `draw_frontier`.
    """
    # Not pyplot: a bare figure needs no display and leaves the caller's backend alone.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    averaged = [(name, over_training_seeds(results)) for name, results in panels]
    if cost:
        averaged = [(name, [_at_cost(each) for each in results]) for name, results in averaged]
    best = _best_heuristics([results for _, results in averaged])
    # A fixed salt and no date: the same results give the same files.
    with matplotlib.rc_context({"svg.hashsalt": "jax_unmask", "font.size": 9}):
        figure = Figure(figsize=(max(3.7 * len(panels), 4.8), 3.7), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axis, (name, results) in zip(axes, averaged, strict=True):
            _draw_heuristics(axis, results, best, handles)
            _draw_learned(axis, [each for each in results if each.is_learned], handles)
            _decorate(axis, name, label)
        axes[0].set_ylabel("accuracy %")
        order = [*best, "other heuristics", "hand-written rules"]
        names = [*(n for n in order if n in handles), *(n for n in handles if n not in order)]
        figure.legend(
            [Line2D([], [], **handles[name]) for name in names],
            names,
            loc="outside lower center",
            ncols=min(len(names), 2 + len(panels)),
            fontsize=8,
            frameon=False,
        )
        figure.suptitle(title, fontsize=10)
        for kind in FORMATS:
            picture = io.BytesIO()
            dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
            figure.savefig(picture, format=kind, dpi=200, metadata=dates)
            atomic_write(pathlib.Path(path).with_suffix(f".{kind}"), picture.getvalue())


def _at_cost(result: Result) -> Result:
    """The result with its cost in the place of its NFE."""
    point = dataclasses.replace(result.point, nfe=result.cost, nfe_se=result.cost_se)
    return dataclasses.replace(result, point=point)


def _best_heuristics(panels: Sequence[Sequence[Result]]) -> list[str]:
    """The methods with most settings on the heuristics' frontiers, where these are of some use."""
    counts: dict[str, int] = defaultdict(int)
    for results in panels:
        line = frontier.pareto(each.point for each in results if each.label == HEURISTIC)
        for point in line:
            counts[point.method] += point.accuracy >= line[-1].accuracy / 2
    return sorted(counts, key=lambda method: (-counts[method], method))[:_BEST]


def _by_method(results: Sequence[Result], label: str) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.label == label:
            found[result.point.method].append(result)
    return found


def _draw_heuristics(
    axis: Any, results: Sequence[Result], best: Sequence[str], handles: dict[str, Any]
) -> None:
    for label, rest in ((HEURISTIC, "other heuristics"), (RULE, "hand-written rules")):
        for method, members in _by_method(results, label).items():
            index = colour_index(method)
            style = {"color": _GREY, "linewidth": 1.0, "marker": "o", "markersize": 2.5}
            if label == RULE:
                style |= {"linestyle": ":", "color": "#8A8A8A"}
            if method in best:
                style |= {"color": _COLOURS[index], "marker": _MARKERS[index], "linewidth": 1.5}
                style["markersize"] = 3.5
            handles.setdefault(method if method in best else rest, style)
            _draw_line(axis, members, zorder=2 if method in best else 1, **style)


def _draw_learned(axis: Any, results: Sequence[Result], handles: dict[str, Any]) -> None:
    """A line for policies that act alike, the best of these lines in full colour and labelled."""
    names = {
        label: _short_names([each.point.method for each in results if each.label == label])
        for label in {result.label for result in results}
    }
    groups: dict[tuple[str, str], dict[Any, list[tuple[Result, str]]]] = {}
    for result in results:
        family = groups.setdefault((result.label, _ALPHA.sub("", result.point.method)), {})
        name = names[result.label][result.point.method]
        settings = dict(result.point.settings)
        told = {key: settings.pop(key, None) for key in _TOLD}
        if told["alpha"] is not None:
            name = "" if told["scale"] else rf"{name}, $\alpha$={told['alpha']:g}"
        family.setdefault(tuple(settings.items()), []).append((result, name))
    for count, ((label, _), family) in enumerate(groups.items()):
        alike = sorted(
            family.values(), key=lambda members: -sum(each.point.accuracy for each, _ in members)
        )
        is_here = label == TRAINED
        is_other = count > 0 and not is_here
        name = "learned, trained here" if is_here else f"learned ({label})"
        style = {"color": _LEARNED, "linewidth": 1.5, "marker": "*", "markersize": 9}
        if is_here:
            style |= {"markersize": 13, "markeredgecolor": "black", "markeredgewidth": 0.7}
        handles.setdefault(name, style)
        for index, members in enumerate(alike):
            faded: dict[str, Any] = {"alpha": 0.35, "markersize": 5} if index else {}
            faded |= {"markerfacecolor": "white"} if is_other else {}
            _draw_line(axis, [each for each, _ in members], zorder=4 + is_here, **style | faded)
        named = [pair for pair in alike[0] if pair[1]]
        ends = sorted(named, key=lambda pair: pair[0].point.nfe)
        ends = ends[:1] + ends[1:][-1:]
        if len(ends) > 1 and "alpha" in dict(ends[0][0].point.settings):
            ends[0] = (ends[0][0], ends[0][1].rpartition(", ")[2])  # The other end has its name.
        _write_names(axis, ends, height=7 if is_here else 3 - 13 * (count % 2))


def _write_names(axis: Any, named: Sequence[tuple[Result, str]], *, height: float) -> None:
    for index, (result, name) in enumerate(named):
        axis.annotate(
            name,
            (result.point.nfe, 100 * result.point.accuracy),
            xytext=(4 if index else -6, height + 4 * index),
            textcoords="offset points",
            ha="left" if index else "right",
            fontsize=7.5,
            color=_LEARNED,
            zorder=6,
        )


def _short_names(methods: Sequence[str]) -> dict[str, str]:
    """Methods without how all of them begin; alphas as a formula."""
    methods = list(dict.fromkeys(methods))
    parts = [re.split(r"(?<=[-_ ])", method) for method in methods]
    same = 0
    while len(parts) > 1 and all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    short = ["".join(part[same:]) for part in parts]
    named = [_ALPHA.sub(lambda match: rf"$\alpha$={match['value']}", name) for name in short]
    return dict(zip(methods, named, strict=True))


def _draw_line(axis: Any, results: Sequence[Result], **style: Any) -> None:
    points = sorted((result.point for result in results), key=lambda point: point.nfe)
    axis.errorbar(
        [point.nfe for point in points],
        [100 * point.accuracy for point in points],
        yerr=[100 * point.accuracy_se for point in points],
        xerr=[point.nfe_se for point in points],
        elinewidth=0.6,
        **style,
    )


def _decorate(axis: Any, name: str, label: str) -> None:
    from matplotlib.ticker import NullFormatter

    axis.set_title(name, fontsize=9)
    axis.set_xlabel(label, fontsize=9)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(y=0.08)
    axis.grid(color="0.93", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
