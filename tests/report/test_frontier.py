"""Frontiers, comparisons and standard errors, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jax_unmask.report import frontier
from jax_unmask.report.frontier import Comparison, Point


def point(nfe, accuracy, *, method="threshold", setting=None, se=0.01, outcomes=None, n=100):
    if outcomes is not None:
        outcomes = np.asarray(outcomes, np.float64)
        n, accuracy = len(outcomes), outcomes.mean()
        se = frontier.standard_error(outcomes)
    settings = () if setting is None else (("threshold", setting),)
    return Point(method, settings, accuracy, se, nfe, 0.1, n, outcomes)


CURVE = [point(8, 0.9), point(1, 0.2), point(4, 0.6), point(5, 0.55), point(9, 0.9), point(2, 0.2)]


class TestFrontier:
    def test_keeps_what_no_point_beats(self):
        assert [(p.nfe, p.accuracy) for p in frontier.pareto(CURVE)] == [
            (1, 0.2),
            (4, 0.6),
            (8, 0.9),
        ]

    def test_keeps_the_more_accurate_of_equal_nfe(self):
        assert [p.accuracy for p in frontier.pareto([point(3, 0.4), point(3, 0.7)])] == [0.7]

    def test_of_nothing_is_nothing(self):
        assert frontier.pareto([]) == []

    def test_best_at_most_includes_equal_nfe(self):
        assert frontier.best_at_most(CURVE, 8).accuracy == 0.9
        assert frontier.best_at_most(CURVE, 7.99).accuracy == 0.6

    def test_best_at_most_prefers_the_faster_of_equals(self):
        assert frontier.best_at_most(CURVE, 20).nfe == 8

    def test_best_at_most_may_not_exist(self):
        assert frontier.best_at_most(CURVE, 0.5) is None


class TestChoiceOnValidation:
    validation = (point(4, 0.7, setting=0.5), point(5, 0.6, setting=0.6))
    test = (point(4.1, 0.5, setting=0.5), point(4.0, 0.8, setting=0.6))

    def test_reports_the_chosen_setting_even_if_another_wins_on_test(self):
        chosen = frontier.chosen_at_most(self.validation, self.test, 6)
        assert chosen is self.test[0]

    def test_obeys_the_budget_on_test(self):
        assert frontier.chosen_at_most(self.validation, self.test, 4.05) is self.test[1]
        assert frontier.chosen_at_most(self.validation, self.test, 3.9) is None

    def test_refuses_a_setting_that_validation_lacks(self):
        with pytest.raises(ValueError, match="not on validation"):
            frontier.chosen_at_most(self.validation[1:], self.test, 6)


class TestInterpolation:
    def test_is_linear_between_frontier_points(self):
        middle = frontier.interpolate(CURVE, 6)
        assert middle.accuracy == pytest.approx(0.75)
        assert middle.nfe == 6

    def test_ignores_points_below_the_frontier(self):
        # Between (1, .2) and (4, .6); (2, .2) lies below.
        assert frontier.interpolate(CURVE, 2).accuracy == pytest.approx(0.2 + 0.4 / 3)

    def test_is_flat_past_the_end_and_nothing_before_the_start(self):
        assert frontier.interpolate(CURVE, 100).accuracy == 0.9
        assert frontier.interpolate(CURVE, 0.9) is None
        assert frontier.interpolate([], 3) is None

    def test_standard_error_without_outcomes_is_the_interpolated_one(self):
        curve = [point(1, 0.2, se=0.01), point(3, 0.4, se=0.03)]
        assert frontier.interpolate(curve, 2).accuracy_se == pytest.approx(0.02)

    def test_mixes_outcomes_per_problem(self):
        curve = [point(1, None, outcomes=[0, 0, 1, 0]), point(2, None, outcomes=[1, 1, 1, 0])]
        mixed = frontier.interpolate(curve, 1.25)
        np.testing.assert_allclose(mixed.outcomes, [0.25, 0.25, 1, 0])
        assert mixed.accuracy == pytest.approx(mixed.outcomes.mean())


class TestComparison:
    def test_independent_errors_add_in_squares(self):
        found = frontier.compare(point(4, 0.8, se=0.03), point(4, 0.6, se=0.04))
        assert found.gain == pytest.approx(0.2)
        assert found.se == pytest.approx(0.05)
        assert found.significance == pytest.approx(4)
        assert not found.paired

    def test_pairs_on_the_same_problems(self):
        a, b = [1, 1, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0]
        found = frontier.compare(point(4, None, outcomes=a), point(4, None, outcomes=b))
        # Differences 0 1 0 0 1 0: mean 1/3, sample variance 4/15.
        assert found.gain == pytest.approx(1 / 3)
        assert found.se == pytest.approx(math.sqrt(4 / 15 / 6))
        assert found.paired

    def test_does_not_pair_different_numbers_of_problems(self):
        found = frontier.compare(
            point(4, None, outcomes=[1, 0, 1]), point(4, None, outcomes=[1, 0])
        )
        assert not found.paired

    def test_equal_outcomes_are_not_significant(self):
        same = point(4, None, outcomes=[1, 1, 1])
        assert frontier.compare(same, same).significance == 0

    def test_without_noise_any_gain_is_significant(self):
        assert Comparison(CURVE[0], CURVE[1], -0.1, 0.0, False).significance == -math.inf

    def test_against_nothing_the_gain_is_the_accuracy(self):
        found = frontier.compare_at_most(point(0.5, 0.3, se=0.02), CURVE)
        assert (found.reference, found.gain, found.se) == (None, 0.3, 0.02)

    def test_at_most_and_interpolated_differ_between_points(self):
        policy = point(6, 0.7)
        assert frontier.compare_at_most(policy, CURVE).gain == pytest.approx(0.1)
        assert frontier.compare_interpolated(policy, CURVE).gain == pytest.approx(-0.05)

    def test_at_most_chooses_on_validation(self):
        validation = [point(4, 0.9, setting=0.5), point(4, 0.1, setting=0.6)]
        test = [point(4, 0.3, setting=0.5), point(4, 0.6, setting=0.6)]
        policy = point(5, 0.5)
        assert frontier.compare_at_most(policy, test, validation).gain == pytest.approx(0.2)
        assert frontier.compare_at_most(policy, test).gain == pytest.approx(-0.1)


class TestVerdicts:
    comparisons = (
        frontier.compare(point(4, 0.63, se=0.01), point(4, 0.6, se=0.0)),  # +3 SE, small gain
        frontier.compare(point(4, 0.7, se=0.03), point(4, 0.6, se=0.0)),  # +3.3 SE, +10 points
        frontier.compare(point(4, 0.58, se=0.01), point(4, 0.6, se=0.0)),  # -2 SE
        frontier.compare(point(4, 0.57, se=0.01), point(4, 0.6, se=0.0)),  # -3 SE
    )

    def test_below_needs_more_than_the_tolerance(self):
        assert frontier.lies_below(self.comparisons, 2.001) == [self.comparisons[3]]
        assert frontier.lies_below(self.comparisons, 1.9) == list(self.comparisons[2:])
        assert frontier.lies_below(self.comparisons[:2]) == []

    def test_above_needs_gain_and_significance(self):
        assert frontier.lies_above(self.comparisons) == [self.comparisons[1]]

    def test_refuses_a_negative_tolerance(self):
        with pytest.raises(ValueError, match="tolerance=-1"):
            frontier.lies_below([], -1)


class TestArea:
    def test_is_the_mean_over_budgets(self):
        # 0 on [0, 1), .2 on [1, 4), .6 on [4, 8), .9 on [8, 10].
        expected = (0.2 * 3 + 0.6 * 4 + 0.9 * 2) / 10
        assert frontier.area(CURVE, 0, 10) == pytest.approx(expected)

    def test_starts_inside_a_step(self):
        assert frontier.area(CURVE, 2, 6) == pytest.approx((0.2 * 2 + 0.6 * 2) / 4)

    def test_always_right_at_once_is_one(self):
        assert frontier.area([point(1, 1.0)], 1, 16) == 1.0

    def test_refuses_an_empty_range(self):
        with pytest.raises(ValueError, match="low=4"):
            frontier.area(CURVE, 4, 4)


class TestTrainingSeeds:
    def test_one_seed_is_the_plain_standard_error(self):
        outcomes = np.array([0.0, 1.0, 1.0, 0.0])
        assert frontier.crossed_standard_error(outcomes[None]) == pytest.approx(
            frontier.standard_error(outcomes)
        )

    def test_equal_seeds_leave_the_problems_error(self):
        outcomes = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
        found = frontier.crossed_standard_error(np.stack([outcomes] * 3))
        assert found == pytest.approx(frontier.standard_error(outcomes))

    def test_covers_seeds_and_problems(self):
        rng = np.random.default_rng(0)
        seeds, n = 4, 50
        means = [
            (rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 1, n) + rng.normal(0, 1, (seeds, n)))
            for _ in range(4000)
        ]
        actual = np.std([values.mean() for values in means])
        estimated = np.sqrt(np.mean([frontier.crossed_standard_error(v) ** 2 for v in means]))
        # Bounded below by either source alone, so slightly conservative.
        assert actual * 0.97 < estimated < actual * 1.1

    def test_points_average(self):
        found = frontier.over_training_seeds([point(3, 0.6, se=0.02), point(5, 0.8, se=0.02)])
        assert (found.accuracy, found.nfe) == (pytest.approx(0.7), pytest.approx(4))
        # Variance of the means .6, .8 is .02; /2 seeds, plus the shared problems' .02 ** 2.
        assert found.accuracy_se == pytest.approx(math.sqrt(0.01 + 0.0004))

    def test_refuses_different_settings(self):
        with pytest.raises(ValueError, match="differ in settings"):
            frontier.over_training_seeds([point(3, 0.6, setting=1), point(3, 0.6, setting=2)])

    def test_gains_average_at_each_seeds_own_nfe(self):
        runs = [point(4, None, outcomes=[1, 1, 1, 0]), point(8, None, outcomes=[1, 1, 0, 1])]
        heuristics = [
            point(4, None, outcomes=[1, 0, 0, 0]),
            point(8, None, outcomes=[1, 1, 0, 0]),
        ]
        found = frontier.compare_over_training_seeds(
            [frontier.compare_at_most(run, heuristics) for run in runs]
        )
        assert found.gain == pytest.approx((0.5 + 0.25) / 2)
        assert found.reference.accuracy == pytest.approx((0.25 + 0.5) / 2)
        differences = np.array([[0, 1, 1, 0], [0, 0, 0, 1]])
        assert found.se == pytest.approx(frontier.crossed_standard_error(differences))

    def test_refuses_outcomes_of_another_number_of_problems(self):
        with pytest.raises(ValueError, match="one score per problem"):
            Point("m", (), 0.5, 0.1, 1.0, 0.1, 3, np.zeros(2))
