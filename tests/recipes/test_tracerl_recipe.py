"""Decisions of the recipe on the host: which groups are trained, and how long a text is."""

import sys
import types

import numpy as np
import pytest

from jax_unmask.learners import surrogates
from jax_unmask.recipes.process import ProcessSettings, build_judge
from jax_unmask.recipes.rollouts import choose_groups, text_lengths
from jax_unmask.recipes.tracerl import TraceReward


def test_kept_groups_come_first_and_others_fill_up():
    groups, kept = choose_groups(np.asarray([False, True, False, True]), 3)
    assert groups.tolist() == [1, 3, 0]
    assert kept.tolist() == [True, True, False]


def test_text_lengths():
    tokens = np.asarray([[1, 2, 0, 0], [1, 2, 3, 4], [0, 1, 1, 1], [1, 9, 0, 0]])
    steps = np.asarray([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 0, 0], [0, -1, 1, 2]])
    assert text_lengths(tokens, steps, end_ids=(0, 7)).tolist() == [3, 4, 1, 2]


@pytest.mark.parametrize(
    ("margin", "expected"), [(None, [1, 1, 1]), (0, [1, 1, 0]), (2, [1, 0, 0])]
)
def test_an_answer_at_the_length_limit_is_wrong(margin, expected):
    correct, length = np.ones(3, np.float32), np.asarray([5, 6, 8])
    found = TraceReward(limit_margin=margin).within_limit(correct, length, 8)
    assert found.tolist() == expected and found.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "draws", "expected"),
    [
        ("trace", None, surrogates.Trace(shrink=8)),
        ("random_masking", None, surrogates.RandomMasking(draws=25)),
        ("coupled", 3, surrogates.Coupled(draws=3)),
        ("diffu_grpo", None, surrogates.FullyMasked(draws=1, prompt_mask_ratio=0.15)),
        ("espo", None, surrogates.Elbo(draws=2)),
        ("jax_unmask.learners.surrogates.Autoregressive", None, surrogates.Autoregressive()),
    ],
)
def test_methods_differ_in_their_surrogate_alone(name, draws, expected):
    assert surrogates.SurrogateSettings(surrogate=name, draws=draws).build() == expected


def test_a_judge_of_ones_own_gets_what_it_has_parameters_for(monkeypatch):
    class Lengths:
        def __init__(self, task, votes):
            self.task, self.votes = task, votes

        def judge(self, solutions):
            return [[len(chunk) / 10 for chunk in each.chunks] for each in solutions]

    monkeypatch.setitem(sys.modules, "judges_of_mine", types.SimpleNamespace(Lengths=Lengths))
    settings = ProcessSettings(judge="judges_of_mine.Lengths", votes=5)
    judge = build_judge(settings, "task")
    assert (judge.task, judge.votes) == ("task", 5)
