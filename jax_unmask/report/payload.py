"""Results as the plain data that a report page draws."""

import math
from collections.abc import Sequence
from typing import Any

from jax_unmask.report import frontier, intervals, plots, tables
from jax_unmask.report.results import (
    HEADINGS,
    HEURISTIC,
    NO_CACHE,
    RULE,
    TRAINED,
    Result,
    Standing,
    by_series,
    over_training_seeds,
    settings_text,
    standings,
)

_LABELS = HEADINGS | {HEURISTIC: "heuristics"}


def section(results: Sequence[Result], split: str, *, title: str) -> dict[str, Any]:
    """The results of one task, denoiser and canvas, as panels of one block length each.

    `results` are those of all splits; those of "validation" only choose heuristic settings.
    """
    reported = over_training_seeds([result for result in results if result.split == split])
    found = standings(results, split)
    has_costs = any(result.cache != NO_CACHE for result in reported)
    blocks = sorted({result.block_length for result in reported})
    return {
        "title": title,
        "panels": [
            _panel(
                [result for result in reported if result.block_length == block],
                [standing for standing in found if standing.result.block_length == block],
                tables.validation_of(results, block),
                split,
                has_costs,
            )
            for block in blocks
        ],
    }


def _panel(
    results: list[Result],
    found: list[Standing],
    validation: list[Result],
    split: str,
    has_costs: bool,
) -> dict[str, Any]:
    first = results[0]
    on_frontier = {id(point) for point in frontier.pareto(r.point for r in results)}
    constants = tables.constant_settings(found)
    full = " (full diffusion)" if first.block_length == first.gen_length else ""
    return {
        "title": f"block length {first.block_length}{full}, {first.point.n} {split} problems",
        "budgets": frontier.budgets(first.gen_length),
        "series": [_series(each, on_frontier, has_costs) for each in by_series(results).values()],
        "standings": [_standing(standing, constants) for standing in found],
        "constants": settings_text(constants),
        "verdict": tables.verdict(found) if found else "",
        "chosen_on": found[0].chosen_on if found else "",
        "paired": all(s.at_most.paired or s.at_most.reference is None for s in found),
        "areas": [
            {"label": _LABELS.get(label, label), "method": method, "area": area}
            for label, method, area in tables.areas(results, validation)
        ],
    }


def _series(results: Sequence[Result], on_frontier: set[int], has_costs: bool) -> dict[str, Any]:
    label, method = results[0].series
    return {
        "key": f"{label}/{method}",
        "label": _LABELS.get(label, label),
        "method": method,
        "learned": results[0].is_learned,
        "trained": label == TRAINED,
        "rule": label == RULE,
        "colour": None if results[0].is_learned else plots.colour_index(method),
        "points": [
            _point(result, id(result.point) in on_frontier, has_costs) for result in results
        ],
    }


def _point(result: Result, is_on_frontier: bool, has_costs: bool) -> dict[str, Any]:
    point = result.point
    low, high = intervals.of_proportion(point.accuracy, point.accuracy_se, point.n)
    nfe_low, nfe_high = intervals.around(point.nfe, point.nfe_se)
    seeds = [
        f"{count} {kind} seeds"
        for count, kind in ((result.training_seeds, "training"), (result.sampling_seeds, "drawing"))
        if count > 1
    ]
    return {
        "settings": settings_text(point.settings),
        "seeds": ", ".join(seeds),
        "accuracy": _rounded(point.accuracy),
        "low": _rounded(low),
        "high": _rounded(high),
        "nfe": _rounded(point.nfe),
        "nfe_low": _rounded(nfe_low),
        "nfe_high": _rounded(nfe_high),
        # Without caches all forwards cost the same, so NFE is enough.
        "cost": _rounded(result.cost) if has_costs else None,
        "ms": _rounded(1000 * result.seconds_per_sequence),
        "unfilled": _rounded(result.still_masked),
        "frontier": is_on_frontier,
    }


def _standing(standing: Standing, constants: Sequence[tuple[str, float | str]]) -> dict[str, Any]:
    """A row of the table; settings that all rows have are left out of its name."""
    point, reference = standing.result.point, standing.at_most.reference
    settings = settings_text(each for each in point.settings if each not in constants)
    best: dict[str, Any] = dict.fromkeys(("reference", "reference_accuracy", "reference_nfe"))
    if reference is not None:
        best["reference"] = f"{reference.method} {settings_text(reference.settings)}".strip()
        best["reference_accuracy"] = _rounded(reference.accuracy)
        best["reference_nfe"] = _rounded(reference.nfe)
    return {
        "policy": f"{point.method}{f' ({settings})' if settings else ''}",
        "accuracy": _rounded(point.accuracy),
        "nfe": _rounded(point.nfe),
        **best,
        "at_most": _gain(standing.at_most),
        "interpolated": _gain(standing.interpolated),
        "saved": {
            "forwards": _rounded(standing.saved.forwards),
            "se": _rounded(standing.saved.se),
            "least": standing.saved.reached < standing.saved.seeds,
        },
    }


def _gain(comparison: frontier.Comparison) -> dict[str, Any]:
    return {"gain": _rounded(comparison.gain), "se": _rounded(comparison.se)}


def _rounded(value: float) -> float | None:
    """Values rounded to six digits, with None for NaN, which JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
