"""Dream's schedule and SDAR's thresholds, each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import policies


def keys(rows):
    return jax.random.split(jax.random.key(3), rows)


def observe(confidence, *, legal=None, step=0):
    """Rows of one block each, with the given confidences."""
    confidence = jnp.asarray(confidence, jnp.float32)
    rows, length = confidence.shape
    legal = jnp.ones(confidence.shape, bool) if legal is None else jnp.asarray(legal)
    steps = jnp.broadcast_to(jnp.asarray(step), (rows,))
    return policies.Observation(
        candidate=jnp.zeros((rows, length), jnp.int32),
        confidence=confidence,
        top_probs=jnp.stack([confidence, 1 - confidence], -1),
        entropy=1 - confidence,
        masked=legal,
        legal=legal,
        step=steps,
        step_in_block=steps,
        block_start=jnp.zeros(rows, jnp.int32),
        block_length=length,
    )


def counts(policy, length, steps):
    """Number of positions that each step of a block fills."""
    confidence = np.random.default_rng(0).random((1, length))
    call = jax.jit(policy)
    params, legal, filled = policy.params(steps=steps), np.ones((1, length), bool), []
    for step in range(steps):
        fill = np.asarray(call(params, observe(confidence, legal=legal, step=step), keys(1)).fill)
        assert (fill <= legal).all()
        legal &= ~fill
        filled.append(int(fill.sum()))
    assert not legal.any()
    return filled


class TestDreamSchedule:
    @pytest.mark.parametrize(
        "policy", [policies.MaskgitPlus(), policies.TopkMargin(), policies.Entropy()]
    )
    def test_rounds_down_and_ends_with_all(self, policy):
        assert counts(policy, 24, 8) == [2, 3, 3, 3, 3, 3, 3, 4]

    def test_share_below_one(self):
        assert counts(policies.MaskgitPlus(), 20, 20) == 20 * [1]
        assert counts(policies.MaskgitPlus(reference_compat=True), 20, 20) == [0, *18 * [1], 2]

    def test_origin_draws_each_position_with_the_share(self):
        policy = policies.Origin(reference_compat=True)
        obs = observe(np.full((400, 50), 0.5), step=2)
        fill = np.asarray(policy(policy.params(steps=8), obs, keys(400)).fill)
        # The third of eight steps: an eighth of the whole, a sixth of what is left.
        assert fill.mean() == pytest.approx(1 / 6, abs=0.01)

    def test_origin_fills_one_where_none_is_drawn(self):
        obs = observe(np.full((400, 4), 0.5))
        policy, compat = policies.Origin(), policies.Origin(reference_compat=True)
        params = policy.params(steps=50)
        ours, theirs = (np.asarray(p(params, obs, keys(400)).fill) for p in (policy, compat))
        nothing = ~theirs.any(axis=1)
        assert 0.5 < nothing.mean() < 1
        assert (ours[nothing].sum(axis=1) == 1).all()
        np.testing.assert_array_equal(ours[~nothing], theirs[~nothing])

    def test_alg_temp_draws_from_the_softmax_of_the_scores(self):
        confidence, temperature = np.array([0.2, 0.5, 0.8]), 0.3
        obs = observe(np.tile(confidence, (4000, 1)))
        policy = policies.MaskgitPlus()
        fill = policy(policy.params(steps=3, alg_temp=temperature), obs, keys(4000)).fill
        expected = np.exp(confidence / temperature)
        np.testing.assert_allclose(fill.mean(axis=0), expected / expected.sum(), atol=0.03)
        best = policy(policy.params(steps=3), obs, keys(4000)).fill
        assert np.asarray(best[:, 2]).all()


class TestThresholds:
    @pytest.mark.parametrize(
        ("threshold", "steps", "expected"),
        [(0.45, 4, [0, 2]), (0.5, 4, [0]), (0.85, 2, [0, 2]), (0.1, 4, [0, 1, 2, 3])],
    )
    def test_dynamic(self, threshold, steps, expected):
        obs = observe([[0.9, 0.2, 0.5, 0.3]])
        policy = policies.Dynamic()
        fill = policy(policy.params(threshold=threshold, steps=steps), obs, keys(1)).fill
        assert np.flatnonzero(fill[0]).tolist() == expected

    def test_dynamic_with_a_setting_per_row(self):
        obs = observe([[0.9, 0.2, 0.5, 0.3]] * 2)
        policy = policies.Dynamic()
        fill = policy(policy.params(threshold=[0.95, 0.25]), obs, keys(2)).fill
        np.testing.assert_array_equal(fill, [[1, 0, 0, 0], [1, 0, 1, 1]])

    def test_dream_threshold_makes_up_for_what_was_left(self):
        policy = policies.DreamThreshold()
        params = policy.params(threshold=0.5, steps=4)
        sure = [[0.9, 0.8, 0.7, 0.6, 0.9, 0.8, 0.7, 0.6]]
        first = policy(params, observe(sure), keys(1)).fill
        assert int(first.sum()) == 2
        # One was filled where four might have been: three are free at the second step.
        legal = np.ones((1, 8), bool)
        legal[0, 0] = False
        second = policy(params, observe(sure, legal=legal, step=1), keys(1)).fill
        assert int(second.sum()) == 3
        unsure = policy(params, observe([[0.1, 0.2, 0.3, 0.4]]), keys(1)).fill
        assert np.flatnonzero(unsure[0]).tolist() == [3]
