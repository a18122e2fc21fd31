"""Frontiers, comparisons and standard errors, on numbers that can be checked by hand."""

import dataclasses
import math

import numpy as np
import pytest

from jax_unmask.report import frontier
from jax_unmask.report.frontier import Comparison, Point


def point(nfe, accuracy=None, *, setting=None, se=0.01, outcomes=None, n=100):
    if outcomes is not None:
        outcomes = np.asarray(outcomes, np.float64)
        n, accuracy = len(outcomes), outcomes.mean()
        se = frontier.standard_error(outcomes)
    settings = () if setting is None else (("threshold", setting),)
    return Point("threshold", settings, accuracy, se, nfe, 0.1, n, outcomes)


CURVE = [point(8, 0.9), point(1, 0.2), point(4, 0.6), point(5, 0.55), point(9, 0.9), point(2, 0.2)]


def test_a_frontier_keeps_what_no_point_beats():
    found = [(p.nfe, p.accuracy) for p in frontier.pareto([*CURVE, point(8, 0.7)])]
    assert found == [(1, 0.2), (4, 0.6), (8, 0.9)]
    assert frontier.pareto([]) == []


@pytest.mark.parametrize(("nfe", "best"), [(8, (8, 0.9)), (7.99, (4, 0.6)), (20, (8, 0.9))])
def test_the_best_at_a_budget_is_the_fastest_of_equals(nfe, best):
    found = frontier.best_at_most(CURVE, nfe)
    assert (found.nfe, found.accuracy) == best
    assert frontier.best_at_most(CURVE, 0.5) is None


def test_a_choice_on_validation_is_not_changed_by_the_test_set():
    validation = (point(4, 0.7, setting=0.5), point(5, 0.6, setting=0.6))
    test = (point(4.1, 0.5, setting=0.5), point(4.0, 0.8, setting=0.6))
    assert frontier.best_at_most(test, 6, validation) is test[0]
    # The budget is that of the test problems.
    assert frontier.best_at_most(test, 4.05, validation) is test[1]
    assert frontier.best_at_most(test, 3.9, validation) is None
    with pytest.raises(ValueError, match=r"'threshold': 0\.5.* validation"):
        frontier.best_at_most(test, 6, validation[1:])


@pytest.mark.parametrize(
    ("nfe", "accuracy"),
    # Linear between (4, .6) and (8, .9), and between (1, .2) and (4, .6) though (2, .2) lies
    # below; flat past the end.
    [(6, 0.75), (2, 0.2 + 0.4 / 3), (100, 0.9)],
)
def test_interpolation(nfe, accuracy):
    assert frontier.interpolate(CURVE, nfe).accuracy == pytest.approx(accuracy)


def test_no_interpolation_before_the_start():
    assert frontier.interpolate(CURVE, 0.9) is frontier.interpolate([], 3) is None


def test_interpolated_errors_and_outcomes():
    curve = [point(1, 0.2, se=0.01), point(3, 0.4, se=0.03)]
    assert frontier.interpolate(curve, 2).accuracy_se == pytest.approx(0.02)
    curve = [point(1, outcomes=[0, 0, 1, 0]), point(2, outcomes=[1, 1, 1, 0])]
    mixed = frontier.interpolate(curve, 1.25)
    np.testing.assert_allclose(mixed.outcomes, [0.25, 0.25, 1, 0])
    assert mixed.accuracy == pytest.approx(mixed.outcomes.mean())
    assert mixed.accuracy_se == pytest.approx(frontier.standard_error(mixed.outcomes))


def test_independent_errors_add_in_squares():
    found = frontier.compare(point(4, 0.8, se=0.03), point(4, 0.6, se=0.04))
    assert (found.gain, found.se) == (pytest.approx(0.2), pytest.approx(0.05))
    assert found.significance == pytest.approx(4)
    assert not found.paired


def test_pairs_on_the_same_problems():
    policy = point(4, outcomes=[1, 1, 1, 0, 1, 0])
    found = frontier.compare(policy, point(4, outcomes=[1, 0, 1, 0, 0, 0]))
    # Differences 0 1 0 0 1 0: mean 1/3, sample variance 4/15.
    assert (found.gain, found.paired) == (pytest.approx(1 / 3), True)
    assert found.se == pytest.approx(math.sqrt(4 / 15 / 6))
    assert frontier.compare(policy, policy).significance == 0
    assert not frontier.compare(policy, point(4, outcomes=[1, 0])).paired


def test_without_noise_any_gain_is_significant():
    assert Comparison(CURVE[0], CURVE[1], -0.1, 0.0, False).significance == -math.inf


def test_against_nothing_there_is_no_gain():
    found = frontier.compare(point(0.5, 0.3, se=0.02), None)
    assert found.reference is None
    assert math.isnan(found.gain) and math.isnan(found.significance)
    other = frontier.compare(point(4, 0.3), CURVE[0])
    assert frontier.compare_over_training_seeds([other, found]).reference is None


def test_forwards_saved_at_equal_accuracy():
    """The curve is at (1, .2), (4, .6) and (8, .9)."""
    found = frontier.saving([point(2, 0.7, se=0.0), point(2, 0.6, se=0.0)], CURVE)
    assert found.forwards == pytest.approx((4 + 4 / 3 - 2 + 4 - 2) / 2)
    assert (found.reached, found.seeds) == (2, 2)
    # An error of the accuracy counts by the slope: 4 forwards for .3.
    (slope,) = [frontier.saving([point(2, 0.7, se=s)], CURVE).se for s in (0.03,)]
    assert slope >= 0.03 * 4 / 0.3
    partly = frontier.saving([point(2, 0.9), point(2, 0.95)], CURVE)
    assert (partly.forwards, partly.reached) == (6, 1)
    assert math.isnan(frontier.saving([point(2, 0.95)], CURVE).forwards)


@pytest.mark.parametrize(
    ("low", "high", "total"),
    [
        # 0 on [1/2, 1), .2 on [1, 4), .6 on [4, 8), then .9.
        (0.5, 16, 0.2 * 2 + 0.6 * 1 + 0.9 * 1),
        (2, 8, 0.2 * 1 + 0.6 * 1),
    ],
)
def test_area_is_the_mean_over_budgets(low, high, total):
    assert frontier.area(CURVE, low, high) == pytest.approx(total / math.log2(high / low))
    assert frontier.area([point(1, 1.0)], 1, 16) == 1.0
    # Validation chooses: there the fastest setting seemed the best one.
    chosen = [dataclasses.replace(p, accuracy=1 - p.accuracy) for p in CURVE]
    assert frontier.area(CURVE, 2, 8, chosen) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="low=4"):
        frontier.area(CURVE, 4, 4)


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_seeds_leave_the_problems_error(seeds):
    outcomes = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = frontier.crossed_standard_error(np.stack([outcomes] * seeds))
    assert found == pytest.approx(frontier.standard_error(outcomes))


def test_the_standard_error_covers_seeds_and_problems():
    rng = np.random.default_rng(0)
    seeds, n = 4, 50
    means = [
        (rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 1, n) + rng.normal(0, 1, (seeds, n)))
        for _ in range(2000)
    ]
    actual = np.std([values.mean() for values in means])
    estimated = np.sqrt(np.mean([frontier.crossed_standard_error(v) ** 2 for v in means]))
    # Bounded below by either source alone, so slightly conservative.
    assert actual * 0.97 < estimated < actual * 1.1


def test_points_average_over_training_seeds():
    found = frontier.over_training_seeds([point(3, 0.6, se=0.02), point(5, 0.8, se=0.02)])
    assert (found.accuracy, found.nfe) == (pytest.approx(0.7), pytest.approx(4))
    # Variance of the means .6, .8 is .02; /2 seeds, plus the shared problems' .02 ** 2.
    assert found.accuracy_se == pytest.approx(math.sqrt(0.01 + 0.0004))
    with pytest.raises(ValueError, match=r"threshold .*settings"):
        frontier.over_training_seeds([point(3, 0.6, setting=1), point(3, 0.6, setting=2)])


def test_gains_average_at_each_seeds_own_nfe():
    runs = [point(4, outcomes=[1, 1, 1, 0]), point(8, outcomes=[1, 1, 0, 1])]
    heuristics = [point(4, outcomes=[1, 0, 0, 0]), point(8, outcomes=[1, 1, 0, 0])]
    found = frontier.compare_over_training_seeds(
        [frontier.compare(run, frontier.best_at_most(heuristics, run.nfe)) for run in runs]
    )
    assert found.gain == pytest.approx((0.5 + 0.25) / 2)
    assert found.reference.accuracy == pytest.approx((0.25 + 0.5) / 2)
    differences = np.array([[0, 1, 1, 0], [0, 0, 0, 1]])
    assert found.se == pytest.approx(frontier.crossed_standard_error(differences))


def test_refuses_outcomes_of_another_number_of_problems():
    with pytest.raises(ValueError, match=r"\bm .*\(2,\).*\(3,\)"):
        Point("m", (), 0.5, 0.1, 1.0, 0.1, 3, np.zeros(2))
