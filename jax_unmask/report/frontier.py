"""Accuracy against NFE: frontiers, and whether a policy lies above or below one.

Pure functions over `Point`s, in NumPy. The questions are those of arXiv 2512.09106, section 4:
which accuracy does a method reach at which number of denoiser forwards (NFE), and is a difference
more than noise?
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One operating point: a method at one setting.

    Attributes:
        method: the method, e.g. "threshold"; its settings make a line in a plot.
        settings: the setting, e.g. (("threshold", 0.9),); with `method`, the identity of the
            point on any split.
        accuracy: mean score over problems, in [0, 1].
        accuracy_se: its standard error.
        nfe: mean denoiser forwards per sequence.
        nfe_se: its standard error.
        n: number of problems.
        outcomes: score of every problem, float [n] (mean over sampling seeds), or None where it
            was not kept. Problem i must be the same for all points that are compared.
    """

    method: str
    settings: tuple[tuple[str, float | str], ...]
    accuracy: float
    accuracy_se: float
    nfe: float
    nfe_se: float
    n: int
    outcomes: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.outcomes is not None and self.outcomes.shape != (self.n,):
            raise ValueError(
                f"outcomes of {self.method} have shape {self.outcomes.shape}; expected one score "
                f"per problem: ({self.n},)"
            )

    @property
    def identity(self) -> tuple[str, tuple[tuple[str, float | str], ...]]:
        """Key of the point, the same on every split."""
        return self.method, self.settings


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A policy's point against a reference.

    Attributes:
        point: the policy's point.
        reference: what it was compared with; None if no reference is that fast, and then there is
            no gain (NaN).
        gain: accuracy of the point minus that of the reference.
        se: standard error of the gain.
        paired: whether the standard error comes from differences on the same problems.
    """

    point: Point
    reference: Point | None
    gain: float
    se: float
    paired: bool

    @property
    def significance(self) -> float:
        """The gain in standard errors; 0 where both are 0, NaN where there is no reference."""
        if self.se > 0:
            return self.gain / self.se
        if math.isnan(self.gain):
            return math.nan
        return math.copysign(math.inf, self.gain) if self.gain else 0.0


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats: by rising NFE, accuracy rising strictly.

    Of points with equal NFE the most accurate stays; of points with equal accuracy the fastest.
    """
    frontier: list[Point] = []
    for point in sorted(points, key=lambda p: (p.nfe, -p.accuracy)):
        if not frontier or point.accuracy > frontier[-1].accuracy:
            frontier.append(point)
    return frontier


def best_at_most(
    points: Iterable[Point], nfe: float, validation: Iterable[Point] | None = None
) -> Point | None:
    """The most accurate point with at most this NFE (the fastest of equals), or None.

    Args:
        points: the points of the reported split. The budget is that of its problems, for which a
            policy's own NFE was measured.
        nfe: the budget.
        validation: points on another split, whose accuracies alone choose: the best of many
            settings on the problems that are also reported flatters the winner.

    Raises:
        ValueError: a setting was not measured on validation.
    """
    fast = [point for point in points if point.nfe <= nfe]
    if validation is None:
        return min(fast, key=lambda p: (-p.accuracy, p.nfe), default=None)
    accuracy = {point.identity: point.accuracy for point in validation}
    for point in fast:
        if point.identity not in accuracy:
            raise ValueError(
                f"{point.method} with settings {dict(point.settings)} was measured on test, but "
                "not on validation; measure the same settings on both"
            )
    return min(fast, key=lambda p: (-accuracy[p.identity], p.nfe), default=None)


def interpolate(points: Iterable[Point], nfe: float) -> Point | None:
    """The frontier of the points at exactly this NFE, linear between neighbours.

    A mixture of two settings (one drawn for each problem) has this accuracy at this NFE in
    expectation. Below the fastest point there is none; past the slowest point of the frontier more
    forwards buy nothing, and the last accuracy stays.

    Returns:
        A point at `nfe` or, past the end, the last one. Its outcomes are interpolated per problem;
        without outcomes its standard error is the interpolated one, an upper bound (reached when
        the two are perfectly correlated).
    """
    frontier = pareto(points)
    if not frontier or nfe < frontier[0].nfe:
        return None
    if nfe >= frontier[-1].nfe:
        return frontier[-1]
    right = next(k for k, point in enumerate(frontier) if point.nfe > nfe)
    low, high = frontier[right - 1], frontier[right]
    weight = (nfe - low.nfe) / (high.nfe - low.nfe)

    def mix(a: Any, b: Any) -> Any:
        return (1 - weight) * a + weight * b

    outcomes, se = None, mix(low.accuracy_se, high.accuracy_se)
    if _pairable(low, high):
        outcomes = mix(low.outcomes, high.outcomes)
        se = standard_error(outcomes)
    return Point(
        method=f"{low.method}~{high.method}" if low.method != high.method else low.method,
        settings=(("between", f"{_text(low)} and {_text(high)}"), ("weight", weight)),
        accuracy=mix(low.accuracy, high.accuracy),
        accuracy_se=se,
        nfe=nfe,
        nfe_se=mix(low.nfe_se, high.nfe_se),
        n=min(low.n, high.n),
        outcomes=outcomes,
    )


def compare(point: Point, reference: Point | None) -> Comparison:
    """The gain of a point over a reference, with its standard error.

    Where both have outcomes of the same problems, the standard error is that of the differences
    per problem; otherwise the two are taken as independent.
    """
    if reference is None:
        return Comparison(point, None, math.nan, math.nan, paired=False)
    paired = _pairable(point, reference)
    if paired:
        se = standard_error(point.outcomes - reference.outcomes)  # type: ignore[operator]
    else:
        se = math.hypot(point.accuracy_se, reference.accuracy_se)
    return Comparison(point, reference, point.accuracy - reference.accuracy, se, paired)


@dataclasses.dataclass(frozen=True)
class Saving:
    """Forwards that a policy saves against a frontier at equal accuracy.

    Attributes:
        forwards: NFE of the frontier at the policy's accuracy, minus the policy's; NaN where the
            frontier never gets there.
        se: its standard error.
        reached: training seeds whose accuracy the frontier reaches, of `seeds`; for the others the
            difference to its most accurate point counts, so that `forwards` is a least value.
    """

    forwards: float
    se: float
    reached: int
    seeds: int


def saving(points: Sequence[Point], references: Iterable[Point]) -> Saving:
    """Forwards saved, the mean over points that differ in their training seed alone.

    The frontier is linear between neighbours. Errors of the two methods are taken as independent,
    an upper bound where both saw the same problems; those of accuracies count by its slope.

    Raises:
        ValueError: there are no points, or no references.
    """
    line = pareto(references)
    if not points or not line:
        raise ValueError("a saving needs points and references")
    saved, errors, reached = [], [], 0
    for point in points:
        nfe, error = line[-1].nfe, line[-1].nfe_se
        for low, high in itertools.pairwise(line):
            if low.accuracy <= point.accuracy <= high.accuracy:
                weight = (point.accuracy - low.accuracy) / (high.accuracy - low.accuracy)
                forwards_per_accuracy = (high.nfe - low.nfe) / (high.accuracy - low.accuracy)
                nfe = low.nfe + weight * (high.nfe - low.nfe)
                error = math.hypot(
                    (1 - weight) * low.nfe_se + weight * high.nfe_se,
                    ((1 - weight) * low.accuracy_se + weight * high.accuracy_se)
                    * forwards_per_accuracy,
                    point.accuracy_se * forwards_per_accuracy,
                )
                break
        if point.accuracy < line[0].accuracy:  # No reference is as fast and as bad.
            nfe, error = line[0].nfe, line[0].nfe_se
        reached += point.accuracy <= line[-1].accuracy
        saved.append(nfe - point.nfe)
        errors.append(math.hypot(point.nfe_se, error))
    if not reached:
        return Saving(math.nan, math.nan, 0, len(points))
    none: list[np.ndarray | None] = [None]
    se = _seeds_standard_error(none, saved, errors)
    return Saving(float(np.mean(saved)), se, reached, len(points))


def area(
    points: Iterable[Point], low: float, high: float, validation: Sequence[Point] | None = None
) -> float:
    """Mean of the envelope over all NFE budgets in [low, high], on a logarithmic scale.

    A = 1 / ln(high / low) * integral of a(x) dx / x. The envelope a(x) is the accuracy of the best
    point at NFE <= x (`best_at_most`), and 0 where none is that fast. The area lies in [0, 1]; 1
    means always right within `low` forwards. Areas compare only over the same [low, high], see
    `budgets`.

    Args:
        points: the points of the reported split.
        low, high: budgets.
        validation: points of another split, which choose.

    Raises:
        ValueError: unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"low={low} and high={high} must satisfy 0 < low < high")
    points, total = list(points), 0.0
    edges = sorted({low, high, *(point.nfe for point in points if low < point.nfe < high)})
    for start, end in itertools.pairwise(edges):
        best = best_at_most(points, start, validation)
        total += math.log(end / start) * (best.accuracy if best else 0.0)
    return total / math.log(high / low)


def budgets(gen_length: int) -> tuple[float, float]:
    """The budgets of areas: L / 16 forwards, at least one, to L / 2, at least two.

    >>> budgets(16), budgets(256)
    ((1.0, 8.0), (16.0, 128.0))
    """
    return max(1.0, gen_length / 16), max(2.0, gen_length / 2)


def over_training_seeds(points: Sequence[Point]) -> Point:
    """One point for policies that differ in their training seed alone.

    Accuracy and NFE are means over seeds. Their standard errors are for a new training seed *and*
    new problems: with outcomes of the same problems, `crossed_standard_error`; without, the
    variance between seeds plus that of one seed's problems (which more seeds do not make smaller,
    because all share them), an upper bound.

    Raises:
        ValueError: for no points, or points of different settings or numbers of problems.
    """
    if not points:
        raise ValueError("there is no point to average; pass one per training seed")
    first = points[0]
    if any(point.settings != first.settings or point.n != first.n for point in points):
        raise ValueError(
            f"points of {first.method} differ in settings or number of problems; average only "
            "training seeds that were measured alike"
        )
    accuracies = [point.accuracy for point in points]
    rows = [point.outcomes for point in points]
    outcomes = None if any(row is None for row in rows) else np.mean(rows, axis=0)  # type: ignore[arg-type]
    nfes = [point.nfe for point in points]
    return dataclasses.replace(
        first,
        accuracy=float(np.mean(accuracies)),
        accuracy_se=_seeds_standard_error(rows, accuracies, [p.accuracy_se for p in points]),
        nfe=float(np.mean(nfes)),
        nfe_se=_seeds_standard_error([None], nfes, [p.nfe_se for p in points]),
        outcomes=outcomes,
    )


def compare_over_training_seeds(comparisons: Sequence[Comparison]) -> Comparison:
    """The mean gain over training seeds, each compared with the reference at that seed's NFE.

    The standard error covers training seeds and problems (see `over_training_seeds`). The
    reference has the mean accuracy and NFE of all seeds' references; where these are different
    settings, its name lists them. Where no reference is as fast as one of the seeds, there is none.

    Raises:
        ValueError: for no comparisons, or points of different settings.
    """
    point = over_training_seeds([c.point for c in comparisons])
    if any(c.reference is None for c in comparisons):
        return compare(point, None)
    gains = [c.gain for c in comparisons]
    rows = [_differences(c) for c in comparisons]
    se = _seeds_standard_error(rows, gains, [c.se for c in comparisons])
    references = [c.reference for c in comparisons if c.reference is not None]
    reference, names = references[0], sorted(set(map(_text, references)))
    if len(names) > 1:
        reference = dataclasses.replace(
            reference, method="by seed: " + "; ".join(names), settings=()
        )
    reference = dataclasses.replace(
        reference,
        accuracy=point.accuracy - float(np.mean(gains)),
        nfe=float(np.mean([each.nfe for each in references])),
        outcomes=None,
    )
    paired = all(row is not None for row in rows)
    return Comparison(point, reference, float(np.mean(gains)), se, paired)


def standard_error(values: Float[np.ndarray, " n"]) -> float:
    """Standard error of the mean of independent values; NaN for fewer than two."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def crossed_standard_error(values: Float[np.ndarray, "S n"]) -> float:
    """Standard error of the grand mean of S seeds crossed with n problems, both random.

    Random-effects model x[s, i] = mean + seed_s + problem_i + rest_si; by its mean squares (Searle,
    Casella, McCulloch 1992, section 4.3), the variance of the grand mean is
    (MS_seed + MS_problem - MS_rest) / (S n). It is kept at least as large as either source alone
    gives. With one seed, seeds cannot vary and the problems' standard error is returned.
    """
    values = np.asarray(values, np.float64)
    seeds, n = values.shape
    if seeds == 1:
        return standard_error(values[0])
    if n < 2:
        return math.nan
    by_seed, by_problem = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_problem + values.mean()
    seed_term = by_seed.var(ddof=1) / seeds
    problem_term = by_problem.var(ddof=1) / n
    rest_term = (rest**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n)
    variance = max(seed_term + problem_term - rest_term, seed_term, problem_term)
    return math.sqrt(variance)


def _seeds_standard_error(
    rows: Sequence[np.ndarray | None], means: Sequence[float], errors: Sequence[float]
) -> float:
    """Standard error of a mean over seeds, from their values per problem if all have them."""
    kept = [row for row in rows if row is not None]
    if len(kept) == len(rows):
        return crossed_standard_error(np.stack(kept))
    of_seeds = np.var(means, ddof=1) / len(means) if len(means) > 1 else 0.0
    return math.sqrt(of_seeds + np.mean(np.square(errors)))


def _pairable(a: Point, b: Point) -> bool:
    return a.outcomes is not None and b.outcomes is not None and a.n == b.n and a.n > 1


def _differences(comparison: Comparison) -> np.ndarray | None:
    """Differences per problem, where they are what the standard error is made of."""
    if not comparison.paired:
        return None
    return comparison.point.outcomes - comparison.reference.outcomes  # type: ignore


def _text(point: Point) -> str:
    return ",".join([point.method, *(f"{name}={value}" for name, value in point.settings)])
