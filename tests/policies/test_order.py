"""Ranks against NumPy's stable sort."""

import jax
import numpy as np
import pytest

from jax_unmask.policies.order import by_rank, descending_ranks

LENGTHS = (1, 7, 64, 100)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("lead", [(40,), (4, 10)])
def test_ranks_are_those_of_a_stable_sort(length, lead):
    rng = np.random.default_rng(length)
    # Few values, so that ties are common; infinities and signed zeros among them.
    values = np.array([-np.inf, -1.0, -0.0, 0.0, 0.5, np.inf], np.float32)
    scores = rng.choice(values, (*lead, length))
    legal = rng.random(scores.shape) < rng.choice([0.0, 0.5, 1.0], (*lead, 1))
    order = np.argsort(-np.where(legal, scores, -np.inf), axis=-1, kind="stable")
    ranks = jax.jit(descending_ranks)(scores, legal)
    np.testing.assert_array_equal(ranks, np.argsort(order, axis=-1, kind="stable"))
    finite = rng.normal(size=scores.shape).astype(np.float32)
    moved = jax.jit(by_rank)(finite, ranks)
    np.testing.assert_array_equal(moved, np.take_along_axis(finite, order, axis=-1))
