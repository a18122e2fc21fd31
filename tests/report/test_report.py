"""From rows to standings, tables and pictures."""

import math

import numpy as np
import pytest

import reports
from jax_unmask.report import frontier, plots, results, tables
from reports import measured

N = 8


def row(label, method, correct, nfe, **settings):
    return reports.row(label, method, np.resize(correct, N), nfe, **settings)


HEURISTICS = (
    row("heuristic", "threshold", [1, 0, 0, 0], 4, threshold=0.5),
    row("heuristic", "threshold", [1, 1, 0, 0], 8, threshold=0.9),
    row("heuristic", "random", [0, 0, 0, 0], 4),
)


def test_sampling_seeds_cluster_by_problem():
    rows = [row("shipped", "p", [1, 0, 1, 0], 4), row("shipped", "p", [1, 0, 0, 0], 5, seed=1)]
    rows[1] |= {"seconds_per_sequence": 0.04}  # Another program was running.
    (found,) = measured(*rows)
    assert found.sampling_seeds == 2
    assert found.point.accuracy == pytest.approx(3 / 8)
    assert found.point.nfe == pytest.approx(4.5)
    per_problem = np.resize([1, 0, 0.5, 0], N)
    assert found.point.accuracy_se == pytest.approx(frontier.standard_error(per_problem))
    assert found.seconds_per_sequence == pytest.approx(0.01)


def test_refuses_rows_of_different_size():
    with pytest.raises(ValueError, match="threshold"):
        measured(HEURISTICS[0], {**HEURISTICS[0], "n": 9})


def test_rows_without_standard_errors():
    single = {**HEURISTICS[0], "accuracy_se": None, "nfe_se": None}
    (found,) = results.collect([single], lambda row: None)
    assert math.isnan(found.point.accuracy_se)


def test_standing_pairs_problems_and_averages_training_runs():
    runs = [
        row("shipped", "p", [1, 1, 1, 0], 5, training_seed=0),
        row("shipped", "p", [1, 1, 0, 0], 9, training_seed=1),
    ]
    # A rule is shown, but is not the measure; nor are heuristics of other block lengths.
    rule = row(results.RULE, "conflict_free", [1, 1, 1, 1], 2, threshold=0.5)
    found = measured(*HEURISTICS, *runs, rule, row("shipped", "p", [1, 1, 1, 1], 5, block=16))
    (standing,) = results.standings(found, "test")
    # Run 0 against .25 at NFE 4, run 1 against .5 at NFE 8.
    assert standing.at_most.gain == pytest.approx((0.5 + 0.0) / 2)
    assert standing.result.training_seeds == 2
    assert standing.chosen_on == "test"
    differences = np.stack([np.resize([0, 1, 1, 0], N), np.zeros(N)])
    assert standing.at_most.se == pytest.approx(frontier.crossed_standard_error(differences))


def test_settings_chosen_on_validation():
    validation = [
        row("heuristic", "threshold", [1, 1, 1, 0], 4, split="validation", threshold=0.5),
        row("heuristic", "threshold", [0, 0, 0, 0], 8, split="validation", threshold=0.9),
        row("heuristic", "random", [0, 0, 0, 0], 4, split="validation"),
    ]
    found = measured(*HEURISTICS, *validation, row("shipped", "p", [1, 1, 1, 0], 8))
    (standing,) = results.standings(found, "test")
    assert standing.chosen_on == "validation"
    # .25 is what the setting that won on validation has on test, where another has .5.
    assert standing.at_most.reference.accuracy == 0.25


def test_summary_says_what_was_won_and_lost():
    found = measured(
        *HEURISTICS,
        row("trained here", "good", [1], 5, temperature=0.5),
        row("shipped", "bad", [0], 8),
    )
    text = tables.summary(found, "test", title="task", markdown=False)
    assert "at equal or lower NFE: good (temperature=0.5) @ 5.00 (forwards saved" in text
    assert "More than 2 SE below it: bad @ 8.00." in text
    assert "+75.0 ± 16.4" in text
    assert "no heuristic is as accurate" in text and "-0.00" not in text
    markdown = tables.summary(found, "test", title="task", markdown=True)
    assert markdown.startswith("# task\n\n## Block length 4, n = 8 (test)")
    assert "| * | heuristic | threshold | threshold=0.5 |" in markdown


def test_a_policy_faster_than_every_heuristic_is_no_win():
    found = measured(*HEURISTICS, row("trained here", "fast", [1, 1, 0, 0], 2))
    text = tables.summary(found, "test", title="task", markdown=False)
    assert "none is this fast" in text
    assert "lower NFE: nowhere." in text and "Faster than every heuristic: fast @ 2.00." in text
    # Its accuracy is that of the slowest heuristic.
    assert "+6.00 ±" in text
    assert "inf" not in text and "nan" not in text


def test_the_headline_is_of_the_trained_block_length():
    found = measured(
        *HEURISTICS,
        *(row("heuristic", "threshold", [1, 0], 4, block=b, threshold=0.5) for b in (8, 16)),
        *(row("trained here", "p", [1, 1, 1, 0], 5, block=b) for b in (8, 16)),
        row("trained here", "p", [1], 5),  # The largest gain.
    )
    text = tables.headline(found, "test", title="t", block_length=8)
    assert text.startswith("t: p has 75.0 ± 16.4 % right in 5.00 forwards (blocks of 8). Against")
    for other in (None, 2):
        text = tables.headline(found, "test", title="t", block_length=other)
        assert "(whole canvas). Against" in text


def test_the_headline_without_a_learned_policy():
    found = measured(*HEURISTICS)
    best = "t: the best is threshold threshold=0.9: 50.0 ± 18.9 % in 8.00 forwards (blocks of 4)"
    assert tables.headline(found, "test", title="t") == f"{best}."
    found = measured(*HEURISTICS, row("heuristic", "half", [1, 1, 0, 0], 8))
    assert tables.headline(found, "test", title="t") == f"{best}."


def test_areas_are_those_of_families():
    found = measured(
        *HEURISTICS,
        row("trained here", "p", [1, 1, 0, 0], 2),
        row("shipped", "q", [1], 3, scale=1.0),
        row("shipped", "q", [1], 5, scale=2.0),
    )
    names = [name for _, name, _ in tables.areas(found)]
    assert names == ["all heuristics", "threshold", "q", "all heuristics and learned policies"]


def test_stars_mark_the_frontier_of_the_table():
    table = tables.results_table(measured(*HEURISTICS))
    stars = {line[3]: line[0] for line in table[1:]}
    assert stars == {"threshold=0.5": "*", "threshold=0.9": "*", "-": ""}


def test_picture_has_a_panel_per_block_length_and_the_learned_joined(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    found = measured(
        *HEURISTICS,
        row("heuristic", "margin", [0, 0, 0, 0], 7),
        *(dict(heuristic, block_length=16) for heuristic in HEURISTICS),
        row("shipped", "sudoku-alpha10", [1, 1, 0, 0], 3),
        row("shipped", "sudoku-alpha1", [1, 1, 1, 0], 6),
        row("trained here", "policy, alpha 3", [1, 1, 1, 0], 5),
        *(row("shipped", "told", [1, 0, 0, 0], 10 - alpha, alpha=alpha) for alpha in (1.0, 3.0)),
        row("shipped", "told", [1, 0, 0, 0], 6.5, alpha=3.0, scale=8.0),
    )
    plots.draw_frontier(tmp_path / "frontier.png", found, title="task")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"frontier.{kind}" for kind in ("png", "svg", "pdf")
    }
    figure = figures[0]
    figure.draw_without_rendering()
    titles = ["block length 4", "block length 16 (full diffusion)"]
    assert [axis.get_title() for axis in figure.axes] == titles
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    (legend,) = figure.legends
    shown = {text.get_text() for text in legend.get_texts()}
    assert {"threshold", "learned (shipped)", "learned, trained here", "other heuristics"} <= shown
    labels = [text.get_text() for text in figure.axes[0].texts]
    alphas = [rf"$\alpha$={alpha}" for alpha in (10, 1, 3, 3, 1)]
    names = ["sudoku-", "sudoku-", "policy, ", "", "told, "]
    assert labels == [name + alpha for name, alpha in zip(names, alphas, strict=True)]
    red = [line for line in figure.axes[0].lines if line.get_color() == plots._LEARNED]
    assert sorted(list(line.get_xdata()) for line in red) == [[3, 6], [5], [6.5, 7, 9]]
    top = legend.get_window_extent().y1
    assert all(axis.get_window_extent().y0 > top for axis in figure.axes)
    # As in every other picture.
    assert plots.colour_index("threshold, prefix cache") == plots.colour_index("threshold") == 0
    with pytest.raises(ValueError, match="no results"):
        plots.draw_frontier(tmp_path / "frontier.png", [], title="task")
