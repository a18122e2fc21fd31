"""Points that can be compared, plotted and tabulated, from rows of results.jsonl."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_unmask.report import frontier
from jax_unmask.report.frontier import Comparison, Point, Saving

HEURISTIC = "heuristic"
RULE = "hand-written rule"
TRAINED = "trained here"
SHIPPED = "shipped"
NO_CACHE = "none"
HEADINGS = {
    HEURISTIC: "heuristics, over settings",
    RULE: "hand-written rules",
    SHIPPED: "shipped, trained longer",
}
"""Names of groups where there is room for them."""
LABELS = (HEURISTIC, RULE, TRAINED, SHIPPED)
"""Groups of methods in tables and plots; others follow in the order in which they appear.

Policies are compared with the published heuristics; rules that were written with a task in mind are
shown beside them.
"""

_MEANS = ("seconds_per_sequence", "still_masked", "cost", "cost_se", "pass_at")
Row = Mapping[str, Any]
Outcomes = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """One operating point with where it was measured, averaged over sampling seeds.

    Attributes:
        point: accuracy and NFE.
        label: group of the method, see `LABELS`.
        split: split of the problems.
        block_length: block length of the rollouts.
        gen_length: canvas length of the rollouts.
        training_seeds: number of training runs that were averaged.
        sampling_seeds: number of rows that were averaged.
        seconds_per_sequence: wall time, the least of the sampling seeds: they do the same work, and
            other programs on the machine only add to it.
        still_masked: mean fraction of canvas positions that were never filled.
        cache: cache of the rollouts, "none" for none.
        cost, cost_se: mean cost of a sequence, in whole forwards, and its standard error.
        pass_at: fraction of problems that at least one sampling seed gets right (pass@k with k =
            `sampling_seeds`); NaN without outcomes.
    """

    point: Point
    label: str
    split: str
    block_length: int
    gen_length: int
    training_seeds: int
    sampling_seeds: int
    seconds_per_sequence: float
    still_masked: float
    cache: str = NO_CACHE
    cost: float = math.nan
    cost_se: float = math.nan
    pass_at: float = math.nan

    @property
    def series(self) -> tuple[str, str]:
        """Key of the line in a plot that the point belongs to."""
        return self.label, self.point.method

    @property
    def is_learned(self) -> bool:
        """Whether it is a trained policy."""
        return self.label not in (HEURISTIC, RULE)


def collect(rows: Iterable[Row], outcomes: Callable[[Row], Outcomes | None]) -> list[Result]:
    """Averages rows over sampling seeds, in the order in which the points first appear.

    Standard errors are clustered by problem: each problem is one observation, its mean over seeds.
    Without outcomes they are those of one seed, an upper bound.

    `outcomes` gives (correct, nfe), each [n], of a row of results.jsonl, or None where they were
    not kept.
    """
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        setting = tuple(sorted(row["settings"].items()))
        group = (row["label"], row["split"], row["block_length"], row["gen_length"], _cache(row))
        groups[(*group, row["method"], row.get("training_seed"), setting)].append(row)
    return [_average(same, [outcomes(row) for row in same]) for same in groups.values()]


def _cache(row: Row) -> str:
    """Name of the row's cache; "none" for rows of earlier versions, which had no caches."""
    return row.get("cache", NO_CACHE)


def _average(rows: Sequence[Row], outcomes: Sequence[Outcomes | None]) -> Result:
    first = rows[0]
    if len({row["n"] for row in rows}) > 1:
        raise ValueError(
            f"rows of {first['method']} with settings {first['settings']} differ in their number "
            "of problems; give rows of one evaluation"
        )

    def mean(name: str) -> float:
        return float(np.mean([math.nan if row[name] is None else row[name] for row in rows]))

    kept = [pair for pair in outcomes if pair is not None]
    correct: np.ndarray | None = None
    accuracy_se, nfe_se, pass_at = mean("accuracy_se"), mean("nfe_se"), math.nan
    if len(kept) == len(rows):
        scores = np.asarray([pair[0] for pair in kept], np.float64)
        correct, pass_at = scores.mean(axis=0), float((scores >= 1).any(axis=0).mean())
        accuracy_se = frontier.standard_error(correct)
        nfe_se = frontier.standard_error(np.mean([pair[1] for pair in kept], axis=0))
    point = Point(
        # Methods with another cache are other methods: their forwards are.
        method=first["method"] + (f", {_cache(first)} cache" if _cache(first) != NO_CACHE else ""),
        settings=tuple(sorted(first["settings"].items())),
        accuracy=mean("accuracy"),
        accuracy_se=accuracy_se,
        nfe=mean("nfe_mean"),
        nfe_se=nfe_se,
        n=first["n"],
        outcomes=correct,
    )
    return Result(
        point=point,
        label=first["label"],
        split=first["split"],
        block_length=first["block_length"],
        gen_length=first["gen_length"],
        training_seeds=1,
        sampling_seeds=len(rows),
        seconds_per_sequence=min(row["seconds_per_sequence"] for row in rows),
        still_masked=mean("still_masked"),
        cache=_cache(first),
        cost=mean("cost_mean") if "cost_mean" in first else point.nfe,
        cost_se=mean("cost_se") if "cost_se" in first else nfe_se,
        pass_at=pass_at,
    )


def over_training_seeds(results: Sequence[Result]) -> list[Result]:
    """Averages results that differ in their training seed only; others stay as they are."""
    return [_average_seeds(same) for same in _by_training_run(results)]


def _average_seeds(results: Sequence[Result]) -> Result:
    if len(results) == 1:
        return results[0]
    means: dict[str, Any] = {n: float(np.mean([getattr(r, n) for r in results])) for n in _MEANS}
    return dataclasses.replace(
        results[0],
        point=frontier.over_training_seeds([result.point for result in results]),
        training_seeds=len(results),
        **means,
    )


@dataclasses.dataclass(frozen=True)
class Standing:
    """Comparison of a learned operating point with the heuristics at the same block length.

    Attributes:
        result: the point, averaged over training seeds.
        at_most: against the best heuristic at equal or lower NFE.
        interpolated: against the heuristics' frontier, interpolated at equal NFE.
        saved: forwards saved against that frontier at equal accuracy.
        chosen_on: the split on which the best heuristic's setting was chosen.
    """

    result: Result
    at_most: Comparison
    interpolated: Comparison
    saved: Saving
    chosen_on: str


def standings(results: Sequence[Result], split: str) -> list[Standing]:
    """Compares every learned point of a split with heuristics of the same block length and cache.

    Where the heuristics were measured on the validation split too, their best setting is chosen
    there; otherwise on `split` itself, which favours them. With several training seeds, each is
    compared at its own NFE and the gains are averaged.
    """
    found = []
    measured = [result for result in results if result.split == split]
    for runs in _by_training_run([r for r in measured if r.is_learned]):
        where = runs[0].block_length, runs[0].cache

        def heuristics(on: str, where: tuple[int, str] = where) -> list[Point]:
            return [
                r.point
                for r in results
                if r.label == HEURISTIC and r.split == on and (r.block_length, r.cache) == where
            ]

        if not heuristics(split):
            continue
        validation = heuristics("validation") if split != "validation" else []
        references = heuristics(split)
        at_most, interpolated = [], []
        for point in (run.point for run in runs):
            best = frontier.best_at_most(references, point.nfe, validation or None)
            at_most.append(frontier.compare(point, best))
            mixed = frontier.interpolate(references, point.nfe)
            interpolated.append(frontier.compare(point, mixed))
        found.append(
            Standing(
                _average_seeds(runs),
                frontier.compare_over_training_seeds(at_most),
                frontier.compare_over_training_seeds(interpolated),
                frontier.saving([run.point for run in runs], references),
                "validation" if validation else split,
            )
        )
    return found


def _by_training_run(results: Sequence[Result]) -> list[list[Result]]:
    """Groups of results that differ in their training seed alone."""
    groups: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for r in results:
        groups[(r.label, r.split, r.block_length, r.gen_length, r.point.identity)].append(r)
    return list(groups.values())


def by_series(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by group and method, in the order of tables and plots."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda r: (label_order(r.label), r.label)):
        found[result.series].append(result)
    return dict(found)


def label_order(label: str) -> int:
    """Rank of a label in tables and plots."""
    return LABELS.index(label) if label in LABELS else len(LABELS)


def settings_text(settings: Iterable[tuple[str, Any]]) -> str:
    """Settings as readable text: "threshold=0.9"."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings
    )
