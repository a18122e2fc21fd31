"""Action distributions: golden likelihoods and draws, normalisation by enumeration, gradients."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from jax_unmask.policies import distributions

argmax_legal = jax.jit(distributions.argmax_legal)
bernoulli_argmax_log_prob = jax.jit(distributions.bernoulli_argmax_log_prob)
bernoulli_entropy = jax.jit(distributions.bernoulli_entropy)
bernoulli_log_prob = jax.jit(distributions.bernoulli_log_prob)
bernoulli_probs = jax.jit(distributions.bernoulli_probs)
bernoulli_sample = jax.jit(distributions.bernoulli_sample)
dpls_entropy = jax.jit(distributions.dpls_entropy)
dpls_log_prob = jax.jit(distributions.dpls_log_prob)
dpls_probs = jax.jit(distributions.dpls_probs)
dpls_sample = jax.jit(distributions.dpls_sample)
with_argmax_fallback = jax.jit(distributions.with_argmax_fallback)

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "policy" / "likelihood"
CASES = load_file(FIXTURE / "cases.safetensors")
STOP_LOGITS = {
    case["name"]: case["stop_logit"]
    for case in json.loads((FIXTURE / "meta.json").read_text())["cases"]
    if "stop_logit" in case
}
LENGTH = 4
ACTIONS = np.array(list(itertools.product([False, True], repeat=LENGTH)))
rows = st.tuples(
    st.lists(st.floats(-6, 6, width=32), min_size=LENGTH, max_size=LENGTH),
    st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH),
)


def ranks(ordered: np.ndarray, length: int) -> np.ndarray:
    """1-based ranks from drawn indices in order, padded with negative numbers."""
    rank = np.zeros((*ordered.shape[:-1], length), np.int32)
    for place in np.ndindex(ordered.shape):
        if ordered[place] >= 0:
            rank[(*place[:-1], ordered[place])] = place[-1] + 1
    return rank


def ordered_outcomes() -> np.ndarray:
    """Ranks of every ordered draw of at least one of LENGTH positions."""
    draws = [
        draw
        for size in range(1, LENGTH + 1)
        for draw in itertools.permutations(range(LENGTH), size)
    ]
    return ranks(np.array([[*draw, *[-1] * (LENGTH - len(draw))] for draw in draws]), LENGTH)


@pytest.mark.parametrize("name", ["bern0", "bern1", "bern2"])
def test_bernoulli_log_prob_equals_the_reference(name: str):
    case = {key: CASES[f"{name}.{key}"] for key in ("utilities", "mask", "samples", "loglik")}
    # The reference clamps probabilities to [eps, 1 - eps] of its dtype; so do its logits here.
    limit = -np.log(np.finfo(case["loglik"].dtype).eps)
    got = bernoulli_log_prob(
        jnp.asarray(np.clip(case["utilities"], -limit, limit)),
        jnp.asarray(case["mask"] > 0),
        jnp.asarray(case["samples"] > 0),
    )
    np.testing.assert_allclose(got, case["loglik"], rtol=1e-5, atol=1e-5)


def test_bernoulli_log_prob_is_exact_for_extreme_logits():
    log_prob = bernoulli_log_prob(
        jnp.array([40.0, -60.0]), jnp.array([True, True]), jnp.array([True, True])
    )
    np.testing.assert_allclose(log_prob, -60.0, rtol=1e-6)


def test_bernoulli_sample_equals_the_reference():
    fill = bernoulli_sample(
        jnp.asarray(CASES["bern_draw.utilities"]),
        jnp.asarray(CASES["bern_draw.mask"] > 0),
        jnp.asarray(CASES["bern_draw.uniform"]),
    )
    np.testing.assert_array_equal(fill, CASES["bern_draw.samples"] > 0)


@pytest.mark.parametrize("name", ["dpls0", "dpls1", "dpls2", "dpls_bt"])
def test_dpls_log_prob_equals_the_reference(name: str):
    logits = CASES[f"{name}.utilities"]
    got = dpls_log_prob(
        jnp.asarray(logits),
        jnp.asarray(CASES[f"{name}.mask"] > 0),
        jnp.asarray(ranks(CASES[f"{name}.samples"], logits.shape[-1])),
        STOP_LOGITS[name],
    )
    np.testing.assert_allclose(got, CASES[f"{name}.loglik"], rtol=1e-5, atol=1e-5)


def test_dpls_sample_equals_the_reference():
    case = {
        key: CASES[f"dpls_draw.{key}"] for key in ("utilities", "mask", "first_choice", "gumbel")
    }
    fill, rank = dpls_sample(
        jnp.asarray(case["utilities"]),
        jnp.asarray(case["mask"] > 0),
        jnp.asarray(case["first_choice"]),
        jnp.asarray(case["gumbel"]),
        STOP_LOGITS["dpls_draw"],
    )
    np.testing.assert_array_equal(fill, CASES["dpls_draw.chosen"] > 0)
    np.testing.assert_array_equal(rank, ranks(CASES["dpls_draw.samples"], fill.shape[-1]))


@settings(max_examples=40, deadline=None)
@given(rows, st.floats(0.25, 3, width=32))
def test_bernoulli_sums_to_one_over_all_actions(row, scale):
    logits, legal = np.array(row[0], np.float32), np.array(row[1])
    possible = ~(ACTIONS & ~legal).any(-1)
    for log_prob in (bernoulli_log_prob, bernoulli_argmax_log_prob):
        logs = log_prob(logits, np.tile(legal, (len(ACTIONS), 1)), ACTIONS, scale)
        assert np.exp(logs)[possible].sum() == pytest.approx(1, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(rows.filter(lambda row: any(row[1])), st.floats(-3, 3, width=32))
def test_dpls_sums_to_one_over_all_ordered_outcomes(row, stop_logit):
    logits, legal = np.array(row[0], np.float32), np.array(row[1])
    outcomes = ordered_outcomes()
    possible = ~((outcomes > 0) & ~legal).any(-1)
    shape = (len(outcomes), 1)
    logs = dpls_log_prob(np.tile(logits, shape), np.tile(legal, shape), outcomes, stop_logit)
    probs = np.exp(logs)[possible]
    assert probs.sum() == pytest.approx(1, abs=1e-5)
    filled = probs @ (outcomes[possible] > 0)
    np.testing.assert_allclose(dpls_probs(logits, legal, stop_logit), filled, atol=1e-5)


def test_scale_multiplies_probabilities_up_to_one():
    logits, legal = jnp.array([0.0, 2.0, -2.0]), jnp.ones(3, bool)
    probs = np.minimum(1, 1.5 * np.asarray(jax.nn.sigmoid(logits)))
    np.testing.assert_allclose(bernoulli_probs(logits, legal, 1.5), probs, rtol=1e-6)
    got = bernoulli_log_prob(logits, legal, jnp.array([False, True, False]), 1.5)
    np.testing.assert_allclose(got, np.log((1 - probs[0]) * (1 - probs[2])), rtol=1e-5)
    # The second one is filled for sure; leaving it is impossible, and no NaN to a learner.
    leave = jnp.array([True, False, True])
    assert bernoulli_log_prob(logits, legal, leave, 1.5) == -jnp.inf
    grad = jax.jit(jax.grad(bernoulli_log_prob))(logits, legal, leave, 1.5)
    assert np.isfinite(grad).all()


def test_fallback_fills_the_best_legal_position_of_empty_rows_only():
    logits = jnp.array([[0.0, 3.0, 3.0, 9.0]] * 3)
    legal = jnp.array([[True, True, True, False], [True, True, True, False], [False] * 4])
    fill = jnp.array([[False] * 4, [True, False, False, False], [False] * 4])
    got = with_argmax_fallback(fill, logits, legal)
    assert got.tolist() == [[False, True, False, False], [True, False, False, False], [False] * 4]


def test_argmax_legal_takes_a_legal_position_even_if_all_score_minus_infinity():
    got = argmax_legal(jnp.full(3, -jnp.inf), jnp.array([False, True, True]))
    assert got.tolist() == [False, True, False]


def test_exact_fallback_likelihood_adds_both_ways():
    logits, legal = jnp.array([0.5, -1.0]), jnp.ones(2, bool)
    p = np.asarray(jax.nn.sigmoid(logits))
    best, other = jnp.array([True, False]), jnp.array([False, True])
    np.testing.assert_allclose(
        bernoulli_argmax_log_prob(logits, legal, best), np.log(1 - p[1]), rtol=1e-5
    )
    np.testing.assert_allclose(
        bernoulli_argmax_log_prob(logits, legal, other), bernoulli_log_prob(logits, legal, other)
    )
    assert bernoulli_argmax_log_prob(logits, legal, jnp.zeros(2, bool)) == -jnp.inf


def test_bernoulli_entropy_is_the_expected_surprise():
    logits, legal = np.array([0.3, -2.0, 5.0, 1.0], np.float32), np.array([True, True, False, True])
    possible = ~(ACTIONS & ~legal).any(-1)
    logs = bernoulli_log_prob(logits, np.tile(legal, (len(ACTIONS), 1)), ACTIONS)[possible]
    entropy = bernoulli_entropy(logits, legal)
    np.testing.assert_allclose(entropy, -(np.exp(logs) * logs).sum(), rtol=1e-5)


def test_dpls_entropy_is_that_of_the_first_choice():
    legal = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    logits = jnp.array([1.0, 1.0, jnp.nan])
    got = dpls_entropy(jnp.tile(logits, (3, 1)), legal)
    np.testing.assert_allclose(got, [np.log(2), 0, 0], atol=1e-6)


LEGAL = np.array([[True, False, True], [False] * 3, [True] * 3])
RANK = np.array([[2, 0, 1], [0, 0, 0], [0, 1, 0]])


@jax.jit
def _all_values_and_gradients(logits):
    functions = (
        lambda x: distributions.bernoulli_log_prob(x, LEGAL, RANK > 0),
        lambda x: distributions.bernoulli_log_prob(x, LEGAL, RANK > 0, 0.5),
        lambda x: distributions.bernoulli_argmax_log_prob(x, LEGAL, RANK > 0),
        lambda x: distributions.dpls_log_prob(x, LEGAL, RANK, 0.0),
        lambda x: distributions.bernoulli_entropy(x, LEGAL),
        lambda x: distributions.dpls_entropy(x, LEGAL),
    )
    pairs = [jax.vjp(function, logits) for function in functions]
    return [(values, pull(jnp.ones_like(values))[0]) for values, pull in pairs]


@pytest.mark.parametrize("illegal", [-np.inf, np.inf, np.nan, 1e30])
def test_rows_without_legal_positions_give_zero_and_no_nan(illegal):
    """Values and gradients are finite whatever stands at positions that are not legal."""
    logits = jnp.array([[0.5, illegal, -1.0], [illegal] * 3, [60.0, -60.0, 0.0]])
    for values, grad in _all_values_and_gradients(logits):
        assert np.isfinite(values).all()
        assert values[1] == 0
        assert np.isfinite(grad).all()
        assert not grad[~LEGAL].any()
