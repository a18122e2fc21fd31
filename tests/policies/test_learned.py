"""The learned policy: contexts, settings, likelihoods that agree with samples, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.policies import LearnedPolicy, NetworkConfig
from jax_unmask.policies.base import Action

SMALL = NetworkConfig(
    hidden_dim=16, feedforward_dim=16, time_embed_dim=8, position=True, initial_bias=0.0
)
# Parameters depend on the network alone.
PARAMS = LearnedPolicy(network=SMALL).init_params(jax.random.key(3))


def make(**changes) -> tuple[LearnedPolicy, dict]:
    policy = LearnedPolicy(network=SMALL, **changes)
    return policy, dict(PARAMS)


def keys(rows: int, seed: int = 0) -> jax.Array:
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(rows))


@pytest.mark.parametrize(
    ("distribution", "context"),
    [
        ("bernoulli", "full"),
        ("bernoulli_argmax", "block"),
        ("dpls", "full"),
        ("dpls", "block"),
        ("threshold", "full"),
    ],
)
def test_acts_on_legal_positions_and_scores_its_own_actions(
    make_observation, distribution, context
):
    policy, params = make(distribution=distribution, context=context)
    obs = make_observation(0, rows=16)
    act = jax.jit(policy)
    action = act(params, obs, keys(16))
    assert not (action.fill & ~obs.legal).any()
    if distribution != "bernoulli":
        np.testing.assert_array_equal(action.fill.any(-1), obs.legal.any(-1))
    if distribution != "threshold":
        got = jax.jit(policy.log_prob)(params, obs, action)
        np.testing.assert_allclose(got, action.log_prob, atol=1e-5)
    assert action.log_prob[-1] == 0  # that row has no legal position
    order = np.arange(16)[::-1]
    again = act(params, jax.tree.map(lambda leaf: leaf[order], obs), keys(16)[order])
    np.testing.assert_array_equal(again.fill, action.fill[order])


def test_block_context_is_the_network_on_the_block_alone(make_observation):
    policy, params = make(context="block")
    obs = make_observation(1, rows=6)
    logits = jax.jit(policy.logits)(params, obs)
    apply = jax.jit(policy.network.build().apply)
    inputs = policy.network.observe(obs)
    for row, start in enumerate(obs.block_start.tolist()):
        part = dataclasses.replace(
            inputs,
            masked=inputs.masked[row : row + 1, start : start + 4],
            t=inputs.t[row : row + 1],
            features=inputs.features[row : row + 1, start : start + 4],
        )
        alone = apply({"params": params["network"]}, part)[0]
        np.testing.assert_allclose(logits[row, start : start + 4], alone, atol=1e-5)
        assert np.isneginf(np.delete(logits[row], np.arange(start, start + 4))).all()


def test_block_context_needs_a_block_length(make_observation):
    policy, params = make(context="block")
    with pytest.raises(ValueError, match="block_length=0"):
        policy.logits(params, make_observation(1).replace(block_length=0))


def test_settings_act_per_row_without_recompiling(make_observation):
    policy, params = make(distribution="threshold")
    obs = make_observation(2, rows=2)
    obs = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), obs)
    compiled = jax.jit(policy.logits)
    base = compiled(params | {"temperature": jnp.ones(2)}, obs)
    cooled = compiled(params | {"temperature": jnp.array([1.0, 0.5])}, obs)
    np.testing.assert_allclose(cooled, base * np.array([[1.0], [2.0]]), rtol=1e-6)
    assert compiled._cache_size() == 1
    act = jax.jit(policy)
    # Probabilities times 1e3 pass one half everywhere, times 1e-3 nowhere (arg max alone).
    fill = act(params | {"scale": jnp.array([1e3, 1e-3])}, obs, keys(2)).fill
    np.testing.assert_array_equal(fill[0], obs.legal[0])
    assert fill[1].sum() == 1
    assert act._cache_size() == 1


@pytest.mark.parametrize(
    ("distribution", "exact"), [("bernoulli", False), ("bernoulli_argmax", True), ("dpls", False)]
)
def test_sample_frequencies_agree_with_log_prob(make_observation, distribution, exact):
    """20,000 draws of one row: each outcome is as frequent as its likelihood says."""
    policy, params = make(distribution=distribution, exact_fallback=exact)
    params["scale"] = jnp.asarray(0.8)
    count = 20_000
    obs = make_observation(3, rows=2, length=6, legal=np.tile([1, 0, 1, 1, 0, 0], (2, 1)) > 0)
    row = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], (count, *leaf.shape[1:])), obs)
    action = jax.jit(policy)(params, row, keys(count))
    outcome = np.asarray(action.fill if action.rank is None else action.rank).astype(int)
    values, index, counts = np.unique(outcome, axis=0, return_index=True, return_counts=True)
    probs = np.exp(action.log_prob[index])
    assert len(values) > 4
    assert probs.sum() == pytest.approx(1, abs=1e-4)
    errors = np.sqrt(probs * (1 - probs) / count)
    assert (np.abs(counts / count - probs) < 5 * errors).all()


@pytest.mark.parametrize(
    ("distribution", "context"),
    [("bernoulli", "full"), ("bernoulli_argmax", "block"), ("dpls", "block")],
)
@pytest.mark.default_cases("bernoulli_argmax-block")
def test_gradients_are_finite_and_leave_settings_alone(make_observation, distribution, context):
    policy, params = make(distribution=distribution, context=context)
    obs = make_observation(4)
    action = jax.jit(policy)(params, obs, keys(4))

    def loss(params):
        return jnp.sum(sum(policy.log_prob_and_entropy(params, obs, action)))

    both = policy.log_prob_and_entropy(params, obs, action)
    np.testing.assert_array_equal(both[0], policy.log_prob(params, obs, action))
    np.testing.assert_array_equal(both[1], policy.entropy(params, obs))
    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.abs(grads["network"]["output"]["kernel"]).max() > 0
    assert grads["temperature"] == 0
    assert grads["scale"] == 0


def test_mistakes_are_named(make_observation):
    obs = make_observation(5)
    action = Action(fill=obs.legal, log_prob=jnp.zeros(4))
    policy, params = make(distribution="threshold")
    with pytest.raises(ValueError, match="deterministic"):
        policy.log_prob(params, obs, action)
    with pytest.raises(ValueError, match="deterministic"):
        policy.log_prob_and_entropy(params, obs, action)
    assert not policy.entropy(params, obs).any()
    policy, params = make(distribution="dpls")
    with pytest.raises(ValueError, match=r"Action\.rank .*'dpls'"):
        policy.log_prob(params, obs, action)
    with pytest.raises(ValueError, match="exact_fallback = True"):
        make(exact_fallback=True)
