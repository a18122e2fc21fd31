"""Heuristic rules: each against its definition, and what all of them share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unmask import policies
from jax_unmask.policies.base import Filled
from jax_unmask.policies.heuristics import quota

RULES = (
    policies.Random(),
    policies.TopConfidence(),
    policies.LowConfidence(),
    policies.Margin(),
    policies.LeftToRight(),
    policies.Threshold(),
    policies.FrontierThreshold(),
    policies.FrontierTold(),
    policies.ConflictFree(),
    policies.Factor(),
    policies.Factor(reference_compat=True),
    policies.EntropyBounded(),
    policies.CumulatedEntropy(),
    policies.Origin(),
    policies.MaskgitPlus(),
    policies.TopkMargin(),
    policies.Entropy(),
    policies.DreamThreshold(),
    policies.Dynamic(),
)
ROWS, LENGTH = 4, 6
seeds = st.integers(0, 2**32 - 1)


def keys(rows: int) -> jax.Array:
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(7), row))(jnp.arange(rows))


def one_row(confidence: list[float], **leaves: object) -> policies.Observation:
    """A row whose positions are all legal, with the given confidences."""
    row = np.array([confidence], np.float32)
    fields = {
        "candidate": np.arange(row.size)[None],
        "confidence": row,
        "top_probs": np.stack([row, np.zeros_like(row)], -1),
        "masked": np.ones(row.shape, bool),
        "legal": np.ones(row.shape, bool),
        "step": np.zeros(1, int),
        "step_in_block": np.zeros(1, int),
        "block_start": np.zeros(1, int),
    }
    return policies.Observation(**jax.tree.map(jnp.asarray, fields | leaves), block_length=row.size)


def filled(rule, obs: policies.Observation, **settings: object) -> list[int]:
    """Positions that the rule fills in the first row."""
    fill = compiled(rule)(rule.params(**settings), obs, keys(1)).fill
    return np.flatnonzero(fill[0]).tolist()


@functools.cache
def compiled(rule):
    return jax.jit(rule)


def random_observation(seed: int) -> policies.Observation:
    """Legal positions at random; coarse scores, so that ties are common."""
    rng = np.random.default_rng(seed)
    legal = rng.random((ROWS, LENGTH)) < rng.choice([0.0, 0.5, 1.0], (ROWS, 1))
    top = np.sort(rng.integers(0, 5, (ROWS, LENGTH, 2)) / 4, axis=-1)[..., ::-1]
    return policies.Observation(
        candidate=jnp.asarray(rng.integers(0, 3, (ROWS, LENGTH))),
        confidence=jnp.asarray(top[..., 0], jnp.float32),
        top_probs=jnp.asarray(top, jnp.float32),
        masked=jnp.asarray(legal),
        legal=jnp.asarray(legal),
        step=jnp.zeros(ROWS, int),
        step_in_block=jnp.asarray(rng.integers(0, LENGTH, ROWS)),
        block_start=jnp.zeros(ROWS, int),
        entropy=jnp.asarray(rng.integers(0, 4, (ROWS, LENGTH)) / 2, jnp.float32),
        block_length=LENGTH,
    )


def random_params(rule, seed: int):
    """Every setting of the rule at random, one value per row."""
    rng = np.random.default_rng(seed)
    draws = {
        "tokens_per_step": lambda: rng.integers(1, LENGTH + 2, ROWS),
        "steps": lambda: rng.integers("eps" in rule.params(), LENGTH + 2, ROWS),
        "threshold": lambda: rng.integers(0, 5, ROWS) / 4,
        "reach": lambda: rng.integers(0, LENGTH + 2, ROWS),
        "factor": lambda: rng.random(ROWS) * 4,
        "gamma": lambda: rng.random(ROWS) * 4,
        "eb_threshold": lambda: rng.random(ROWS) * 4,
        "eps": lambda: rng.random(ROWS) / 2,
        "alg_temp": lambda: rng.integers(0, 3, ROWS) / 2,
        "alpha": lambda: 10.0 ** rng.integers(-2, 4, ROWS),
    }
    return rule.params(**{name: draws[name]() for name in rule.params()})


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_fills_legal_positions_row_by_row_without_recompiling(rule):
    act = jax.jit(rule)

    @settings(max_examples=30, deadline=None)
    @given(seeds)
    def check(seed):
        obs, params = random_observation(seed), random_params(rule, seed)
        action = act(params, obs, keys(ROWS))
        fill, legal = np.asarray(action.fill), np.asarray(obs.legal)
        assert not (fill & ~legal).any()
        np.testing.assert_array_equal(fill.any(-1), legal.any(-1))
        assert action.log_prob.shape == (ROWS,)
        assert not action.log_prob.any()
        assert action.rank is None
        order = np.random.default_rng(seed).permutation(ROWS)
        moved, moved_params = jax.tree.map(lambda leaf: leaf[order], (obs, params))
        np.testing.assert_array_equal(act(moved_params, moved, keys(ROWS)[order]).fill, fill[order])

    check()
    assert act._cache_size() == 1


def test_quota_equals_the_table_of_the_reference():
    """LLaDA's get_num_transfer_tokens, for blocks of as many masks as positions."""
    table = {
        (8, 3): [3, 3, 2],
        (32, 8): [4] * 8,
        (7, 7): [1] * 7,
        (5, 8): [1] * 5,
        (33, 12): [3] * 9 + [2] * 3,
    }
    for (length, steps), counts in table.items():
        obs = one_row([0.5] * length, step_in_block=np.arange(len(counts)))
        assert quota(policies.Random().params(steps=steps), obs).tolist() == counts


def test_tokens_per_step_bounds_the_count():
    obs = one_row([0.1, 0.9, 0.5, 0.9])
    assert filled(policies.TopConfidence(), obs) == [1]
    assert filled(policies.TopConfidence(), obs, tokens_per_step=2) == [1, 3]
    assert filled(policies.TopConfidence(), obs, tokens_per_step=9) == [0, 1, 2, 3]
    assert filled(policies.LeftToRight(), obs, tokens_per_step=2) == [0, 1]
    assert filled(policies.TopConfidence(), obs, tokens_per_step=4, steps=4) == [1]


def test_equal_scores_go_to_the_lower_position():
    obs = one_row([0.5] * 4, entropy=np.ones((1, 4), np.float32), candidate=np.zeros((1, 4), int))
    for rule in (
        policies.TopConfidence(),
        policies.Margin(),
        policies.Threshold(),
        policies.ConflictFree(),
        policies.Factor(),
    ):
        assert filled(rule, obs, **({"factor": 0} if rule == policies.Factor() else {})) == [0], (
            rule
        )
    assert filled(policies.EntropyBounded(), obs, gamma=0.5) == [0]


def test_margin_ranks_by_the_two_largest_probabilities():
    top_probs = np.array([[[0.5, 0.49], [0.4, 0.1], [0.45, 0.4]]], np.float32)
    assert filled(policies.Margin(), one_row([0.5, 0.4, 0.45], top_probs=top_probs)) == [1]


def test_threshold_includes_equality_and_the_best():
    obs = one_row([0.25, 0.75, 0.5])
    assert filled(policies.Threshold(), obs, threshold=0.5) == [1, 2]
    assert filled(policies.Threshold(), obs, threshold=0.8) == [1]


def test_frontier_threshold_always_takes_the_leftmost():
    obs = one_row([0.25, 0.75, 0.5])
    assert filled(policies.FrontierThreshold(), obs, threshold=0.8) == [0]
    assert filled(policies.FrontierThreshold(), obs, threshold=0.5) == [0, 1, 2]
    assert filled(policies.FrontierThreshold(), obs, threshold=0.5, reach=2) == [0, 1]
    filled_before = one_row([1.0, 0.75, 0.5], legal=np.array([[False, True, True]]))
    assert filled(policies.FrontierThreshold(), filled_before, threshold=0.5, reach=2) == [1, 2]


def test_a_frontier_that_is_told_alpha_takes_more_of_what_is_less_sure():
    rule, obs = policies.FrontierTold(), one_row([0.5, 0.97, 0.9, 0.7])
    assert filled(rule, obs, alpha=0.1) == [0]
    assert filled(rule, obs, alpha=2.0) == [0, 1]
    assert filled(rule, obs, alpha=16.0) == [0, 1, 2]
    assert filled(rule, obs, alpha=100.0) == [0, 1, 2, 3]
    far = one_row([1.0] * 64)
    assert [len(filled(rule, far, alpha=alpha)) for alpha in (0.1, 20.0, 50.0)] == [20, 20, 43]


def test_reconsider_leaves_one_position_to_look_at_the_others_once():
    def action(legal: list[bool], step: int, **settings: float) -> tuple[list[int], list[int]]:
        obs = one_row([0.7, 0.95, 0.8], legal=np.array([legal]), step_in_block=np.array([step]))
        stands = Filled(
            token=obs.candidate,
            probability=jnp.asarray([[0.0, 0.95, 0.85]]),
            age=jnp.ones((1, 3), jnp.int32),
            legal=~obs.legal,
        )
        obs = dataclasses.replace(obs, filled=stands)
        rule = policies.Reconsider()
        done = compiled(rule)(rule.params(threshold=0.6, doubt=0.1, **settings), obs, keys(1))
        return np.flatnonzero(done.fill[0]).tolist(), np.flatnonzero(done.take_back[0]).tolist()

    assert action([True, True, True], 0) == ([1, 2], [])
    assert action([True, True, True], 0, sure=0.7) == ([0, 1, 2], [])
    assert action([True, False, False], 1) == ([0], [2])
    assert action([True, False, False], 0) == ([0], [2])


def test_conflict_free_takes_one_position_per_candidate():
    obs = one_row([0.9, 0.8, 0.7, 0.6, 0.2], candidate=np.array([[1, 1, 2, 2, 3]]))
    assert filled(policies.ConflictFree(), obs, threshold=0.5) == [0, 2]
    # Illegal positions stand in nobody's way.
    obs = obs.replace(legal=obs.legal.at[0, 0].set(False))
    assert filled(policies.ConflictFree(), obs, threshold=0.5) == [1, 2]


def test_factor_takes_the_longest_prefix():
    """(n + 1)(1 - c_n): .2 * 2 (forced anyway), .1 * 3 -> sorted .9 .8 .6 gives .2, .6, 1.6."""
    obs = one_row([0.8, 0.6, 0.9])
    assert filled(policies.Factor(), obs, factor=0.1) == [2]
    assert filled(policies.Factor(), obs, factor=0.61) == [0, 2]
    assert filled(policies.Factor(), obs, factor=1.61) == [0, 1, 2]


def test_factor_quirk_takes_a_failing_last_position():
    obs = one_row([0.8, 0.6, 0.9])
    compat = policies.Factor(reference_compat=True)
    assert filled(compat, obs, factor=0.61) == [0, 1, 2]
    assert filled(compat, obs, factor=0.1) == [2]


def test_entropy_bounded_sums_all_but_the_largest():
    obs = one_row([0.5] * 4, entropy=np.array([[0.4, 0.1, 2.0, 0.2]], np.float32))
    assert filled(policies.EntropyBounded(), obs, gamma=0) == [1]
    assert filled(policies.EntropyBounded(), obs, gamma=0.15) == [1, 3]
    assert filled(policies.EntropyBounded(), obs, gamma=0.35) == [0, 1, 3]
    assert filled(policies.EntropyBounded(), obs, gamma=0.71) == [0, 1, 2, 3]


def test_cumulated_entropy_counts_a_positions_own():
    obs = one_row([0.5] * 4, entropy=np.array([[1.9967, 1.0757, 2.1916, 1.7653]], np.float32))
    assert filled(policies.CumulatedEntropy(), obs, eb_threshold=1.5) == [1]
    assert filled(policies.CumulatedEntropy(), obs, eb_threshold=0.5) == [1]
    assert filled(policies.CumulatedEntropy(), obs, eb_threshold=2.85) == [1, 3]
    assert filled(policies.EntropyBounded(), obs, gamma=1.5) == [1, 3]


def test_llada_spreads_its_steps_over_the_whole_canvas():
    """generate(steps=8, gen_length=16, block_length=4): two steps and two positions a step."""
    canvas = np.full((1, 16), 0.5, np.float32)
    for steps, counts in {
        8: [2, 2, 2, 2],
        4: [4, 4, 4, 4],
        6: [4, 2, 4, 2],
        2: [4, 4, 4, 4],
    }.items():
        for block, count in enumerate(counts):
            start = np.array([4 * block])
            legal = (np.arange(16) // 4 == block)[None]
            obs = one_row(canvas[0], block_start=start, legal=legal).replace(block_length=4)
            for rule in (policies.LowConfidence(), policies.Random()):
                assert len(filled(rule, obs, steps=steps)) == count, (steps, block)


def test_entropy_bounded_needs_entropies():
    assert policies.EntropyBounded().needs.entropy
    with pytest.raises(ValueError, match="lacks entropy"):
        filled(policies.EntropyBounded(), one_row([0.5]))


def test_random_order_is_uniform():
    count = 4_000
    obs = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (count, *[1] * (leaf.ndim - 1))), one_row([0.5] * 4)
    )
    first = jax.jit(policies.Random())(policies.Random().params(), obs, keys(count)).fill
    np.testing.assert_array_equal(first.sum(-1), 1)
    np.testing.assert_allclose(first.mean(0), 0.25, atol=5 * np.sqrt(0.25 * 0.75 / count))


@pytest.mark.parametrize(
    ("rule", "setting", "message"),
    [
        (policies.TopConfidence(), {"tokens_per_step": 0}, "tokens_per_step = 0"),
        (policies.TopConfidence(), {"tokens_per_step": 1.5}, r"tokens_per_step = 1\.5"),
        (policies.Random(), {"steps": float("inf")}, "steps = inf"),
        (policies.Threshold(), {"threshold": [0.5, 1.5]}, r"threshold = 1\.5"),
        (policies.Threshold(), {"threshold": "high"}, "threshold = 'high'"),
        (policies.Factor(), {"factor": float("inf")}, "factor = inf"),
        (policies.EntropyBounded(), {"gamma": float("nan")}, "gamma = nan"),
    ],
)
def test_impossible_settings_are_refused(rule, setting, message):
    with pytest.raises(ValueError, match=message):
        rule.params(**setting)
