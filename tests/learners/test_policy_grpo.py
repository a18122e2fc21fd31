"""The GRPO learner: its gradient, its chunks and minibatches, what it skips, and that it learns."""

import dataclasses

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_unmask.learners.advantages import group_advantages
from jax_unmask.learners.experts import ExpertSettings
from jax_unmask.learners.losses import step_weights
from jax_unmask.learners.policy_grpo import PolicyLearner, PolicyRows, update_together
from jax_unmask.policies.base import Action, Observation
from jax_unmask.policies.distributions import bernoulli_entropy, bernoulli_log_prob
from jax_unmask.rollout.trajectory import Records

STEPS, ROWS, LENGTH = 7, 6, 5


@dataclasses.dataclass(frozen=True)
class LinearPolicy:
    """Bernoulli with logits linear in the confidences: cheap to compile, easy to differentiate."""

    def logits(self, params, obs):
        network = params["network"]
        return network["bias"] + network["kernel"] * obs.confidence

    def log_prob(self, params, obs, action):
        return bernoulli_log_prob(self.logits(params, obs), obs.legal, action.fill)

    def entropy(self, params, obs):
        return bernoulli_entropy(self.logits(params, obs), obs.legal)

    def log_prob_and_entropy(self, params, obs, action):
        return self.log_prob(params, obs, action), self.entropy(params, obs)


PARAMS = {
    "network": {"bias": jnp.linspace(-1.0, 0.5, LENGTH), "kernel": jnp.linspace(0.8, -0.3, LENGTH)},
    "temperature": jnp.ones(()),
    "scale": jnp.ones(()),
}


def make_learner(**settings) -> PolicyLearner:
    return PolicyLearner(**{"policy": LinearPolicy(), "optimizer": optax.sgd(0.1), **settings})


def make_records(seed: int = 0, noise: float = 0.0) -> Records:
    """Random records of rows that end at different steps; `noise` moves the old log-probs."""
    rng = np.random.default_rng(seed)
    nfe = rng.integers(1, STEPS + 1, ROWS)
    active = np.arange(STEPS)[:, None] < nfe
    legal = (rng.random((STEPS, ROWS, LENGTH)) < 0.7) & active[..., None]
    legal[..., 0] = active
    confidence = rng.random((STEPS, ROWS, LENGTH)).astype(np.float32) * active[..., None]
    zero = np.zeros((STEPS, ROWS), np.int32)
    obs = Observation(
        candidate=np.zeros(legal.shape, np.int32),
        confidence=confidence,
        top_probs=confidence[..., None],
        masked=legal,
        legal=legal,
        step=np.arange(STEPS, dtype=np.int32)[:, None] * active,
        step_in_block=zero,
        block_start=zero,
        block_length=LENGTH,
    )
    action = Action(fill=(rng.random(legal.shape) < 0.4) & legal, log_prob=zero.astype(np.float32))
    records = jax.tree.map(jnp.asarray, Records(obs=obs, action=action, active=active))
    old = make_learner().log_prob(PARAMS, records)
    old += jnp.where(records.active, noise * rng.standard_normal((STEPS, ROWS)), 0.0)
    return records.replace(action=records.action.replace(log_prob=old.astype(jnp.float32)))


ADVANTAGES = jnp.array([0.5, -0.5, 0.0, 1.0, -0.25, -0.75])


def dense_loss(network, records, clip=0.5):
    """The loss by its definition, over the whole grid at once."""
    params = {**PARAMS, "network": network}
    log_prob = LinearPolicy().log_prob(params, records.obs, records.action)
    return gradients.grid_policy_loss(
        log_prob, records.action.log_prob, ADVANTAGES, records.active, clip
    )


dense_gradient = jax.jit(jax.value_and_grad(dense_loss))


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_log_prob_scores_active_steps_only():
    records = make_records()
    got = make_learner(chunk_size=4).log_prob(PARAMS, records)
    expected = LinearPolicy().log_prob(PARAMS, records.obs, records.action)
    np.testing.assert_allclose(got, np.where(records.active, expected, 0.0), rtol=1e-6)
    wanted = jnp.arange(STEPS * ROWS).reshape(STEPS, ROWS) % 3 == 0
    some = make_learner(chunk_size=4).log_prob(PARAMS, records, wanted)
    np.testing.assert_array_equal(some, np.where(wanted, got, 0.0))


@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_chunks_do_not_matter(chunk_size):
    records = make_records(noise=0.6)
    loss, expected = dense_gradient(PARAMS["network"], records)
    grads, metrics = gradients.of_policy(
        make_learner(chunk_size=chunk_size), PARAMS, records, ADVANTAGES
    )
    assert_trees_close(grads, expected, rtol=1e-5, atol=1e-7)
    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-6)
    log_ratio = make_learner().log_prob(PARAMS, records) - records.action.log_prob
    counted = np.asarray(records.active & (ADVANTAGES != 0))
    ratio = np.exp(np.asarray(log_ratio))[counted]
    assert float(metrics["ratio_max"]) == pytest.approx(ratio.max(), rel=1e-5)
    assert float(metrics["clip_fraction"]) == pytest.approx(np.mean(np.abs(ratio - 1) > 0.5))
    assert 0 < float(metrics["clip_fraction"]) < 1
    log_prob = np.asarray(make_learner().log_prob(PARAMS, records))[counted]
    legal = np.asarray(records.obs.legal)[counted]
    assert float(metrics["entropy"]) == pytest.approx(-log_prob.sum() / legal.sum(), rel=1e-5)
    assert float(metrics["approx_kl"]) == pytest.approx(
        np.mean(ratio - 1 - np.log(ratio)), rel=1e-4
    )


def test_padded_steps_hold_no_sway():
    # NaN in every inactive step and in rows without advantage: nothing may read them.
    records = make_records(noise=0.3)
    unread = ~(records.active & (ADVANTAGES != 0))
    poisoned = records.replace(
        obs=records.obs.replace(
            confidence=jnp.where(unread[..., None], jnp.nan, records.obs.confidence)
        ),
        action=records.action.replace(log_prob=jnp.where(unread, jnp.nan, records.action.log_prob)),
    )
    learner = make_learner(chunk_size=8)
    clean, dirty = (
        gradients.of_policy(learner, PARAMS, r, ADVANTAGES) for r in (records, poisoned)
    )
    assert_trees_equal(clean, dirty)


def test_two_updates_reuse_the_old_log_probs():
    records = make_records()
    learner = make_learner(optimizer=optax.sgd(2.0), passes=2)
    state = learner.init(PARAMS, jax.random.key(0))
    new, metrics = learner.update(state, records, ADVANTAGES)
    network = PARAMS["network"]
    for _ in range(2):
        network = jax.tree.map(
            lambda p, g: p - 2.0 * g, network, dense_gradient(network, records)[1]
        )
    assert_trees_close(new.params["network"], network, rtol=1e-5, atol=1e-6)
    assert float(metrics["ratio_max"]) > 1.01
    assert int(new.step) == 1
    assert float(metrics["skipped"]) == 0.0
    assert float(metrics["pairs"]) == float(np.sum(records.active & (ADVANTAGES != 0)))
    for name in ("temperature", "scale"):
        np.testing.assert_array_equal(new.params[name], PARAMS[name])
    # One program serves all batches.
    compiled = PolicyLearner.update._cache_size()
    learner.update(new, make_records(1), ADVANTAGES)
    assert PolicyLearner.update._cache_size() == compiled


def test_minibatches_are_unbiased():
    # With plain SGD at a vanishing rate, M steps add up to M estimates of one gradient. Their mean
    # over the parts of one pass is exact if the parts have equal size; over keys it is unbiased.
    records = make_records(noise=0.2)
    _, expected = dense_gradient(PARAMS["network"], records)
    parts, rate = 3, 1e-3
    learner = make_learner(optimizer=optax.sgd(rate), passes=1, minibatches=parts, chunk_size=4)

    def estimate(seed):
        state = learner.init(PARAMS, jax.random.key(seed))
        new, _ = learner.update(state, records, ADVANTAGES)
        return jax.tree.map(
            lambda p, q: (p - q) / (rate * parts), PARAMS["network"], new.params["network"]
        )

    draws = [estimate(seed) for seed in range(60)]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *draws)
    error = jax.tree.map(lambda *x: np.std(x, axis=0) / np.sqrt(len(draws)) + 2e-4, *draws)
    jax.tree.map(
        lambda m, g, e: np.testing.assert_array_less(np.abs(m - g), 4 * e), mean, expected, error
    )


@pytest.mark.parametrize("limit", [None, 1e-3])
def test_no_environment_outweighs_another(limit):
    # Experiences of different sizes, one of which earns a thousand times as much.
    environments = [make_records(noise=0.2), make_records(1, noise=0.1)]
    advantages = [ADVANTAGES, 1000 * ADVANTAGES]
    learner = make_learner(optimizer=optax.sgd(1.0), passes=1, grad_clip=limit)
    state = learner.init(PARAMS, jax.random.key(0))
    alone = [
        learner.update(state, *each)[0].params["network"]
        for each in zip(environments, advantages, strict=True)
    ]
    steps = [jax.tree.map(lambda p, q: q - p, PARAMS["network"], each) for each in alone]
    norms = [float(optax.tree.norm(each)) for each in steps]
    assert norms[1] > 100 * norms[0] > 100 * 1e-3
    factors = [1.0 if limit is None else limit / norm for norm in norms]
    expected = jax.tree.map(
        lambda p, a, b: p + (factors[0] * a + factors[1] * b) / 2, PARAMS["network"], *steps
    )
    new, metrics = update_together(
        (learner, dataclasses.replace(learner, chunk_size=4)),
        state,
        tuple(environments),
        tuple(PolicyRows(each) for each in advantages),
    )
    assert_trees_close(new.params["network"], expected, rtol=2e-5, atol=1e-7)
    assert int(new.step) == 1
    pairs = sum(np.sum(each.active & (ADVANTAGES != 0)) for each in environments)
    assert float(metrics["pairs"]) == float(pairs)


def test_empty_minibatches_take_no_step():
    records = make_records()
    advantages = jnp.zeros(ROWS).at[0].set(1.0)
    pairs = int(records.active[:, 0].sum())
    learner = make_learner(
        optimizer=optax.adam(1e-3), passes=1, minibatches=pairs + 5, chunk_size=2
    )
    state = learner.init(PARAMS, jax.random.key(1))
    new, _ = learner.update(state, records, advantages)
    assert int(new.opt_state[0].count) == pairs
    assert np.isfinite(new.params["network"]["bias"]).all()


@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.1])
def test_batches_without_signal_change_nothing(entropy_coefficient):
    learner = make_learner(
        optimizer=optax.adamw(1e-2, weight_decay=0.1), entropy_coefficient=entropy_coefficient
    )
    state, _ = learner.update(learner.init(PARAMS, jax.random.key(0)), make_records(), ADVANTAGES)
    rewards = np.full(ROWS, 0.3, np.float32)
    advantages = group_advantages(rewards, 3).advantages
    new, metrics = learner.update(state, make_records(seed=1), advantages)
    assert_trees_equal(new.params, state.params)
    assert_trees_equal(new.opt_state, state.opt_state)
    assert float(metrics["skipped"]) == 1.0
    assert float(metrics["pairs"]) == 0.0
    assert int(new.step) == int(state.step) + 1


def test_entropy_bonus_reaches_rows_without_advantage():
    records = make_records()
    coefficient = 0.3

    def dense(network):
        params = {**PARAMS, "network": network}
        legal = jnp.maximum(records.obs.legal.sum(-1), 1)
        entropy = LinearPolicy().entropy(params, records.obs) / legal
        per_row = jnp.sum(jnp.where(records.active, entropy, 0), 0) / records.active.sum(0)
        return dense_loss(network, records) - coefficient * jnp.mean(per_row)

    learner = make_learner(entropy_coefficient=coefficient, chunk_size=4)
    grads, metrics = gradients.of_policy(learner, PARAMS, records, ADVANTAGES)
    loss, expected = jax.jit(jax.value_and_grad(dense))(PARAMS["network"])
    assert_trees_close(grads, expected, rtol=1e-5, atol=1e-7)
    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-6)


def test_experts_count_as_a_mixture():
    records = make_records()
    is_expert = jnp.arange(ROWS) % 3 == 2
    # The recorded log-probability of a deterministic expert is 0 and must not be used.
    old = jnp.where(is_expert, 0.0, records.action.log_prob)
    given = records.replace(action=records.action.replace(log_prob=old))
    learner = make_learner(group_size=2, expert=ExpertSettings(count=1), passes=1)
    state = learner.init(PARAMS, jax.random.key(0))
    new, metrics = learner.update(state, given, ADVANTAGES, is_expert)

    def dense(network):
        params = {**PARAMS, "network": network}
        prob = jnp.exp(LinearPolicy().log_prob(params, records.obs, records.action))
        now = jnp.log(jnp.where(is_expert, 2 / 3 * prob + 1 / 3, prob))
        log_prob = jnp.where(records.active, now, 0.0)
        old = jax.lax.stop_gradient(log_prob)
        return gradients.grid_policy_loss(log_prob, old, ADVANTAGES, records.active, 0.5)

    expected = jax.tree.map(
        lambda p, g: p - 0.1 * g, PARAMS["network"], jax.jit(jax.grad(dense))(PARAMS["network"])
    )
    assert_trees_close(new.params["network"], expected, rtol=1e-5, atol=1e-6)
    assert float(metrics["ratio_max"]) == pytest.approx(1.0, abs=1e-5)


def test_imitated_rows_pull_by_their_likelihood():
    # Rows without advantage, one of them imitated with weight 0.7: the step is along the gradient
    # of its log-likelihood, weighted as the objective weighs its steps.
    records = make_records()
    imitated = jnp.zeros(ROWS).at[2].set(0.7)
    is_expert = jnp.arange(ROWS) % 3 == 2
    learner = make_learner(passes=1, group_size=2, expert=ExpertSettings(count=1))

    def dense(network):
        scores = LinearPolicy().log_prob({"network": network}, records.obs, records.action)
        return jnp.sum(step_weights(records.active) * records.active * scores * imitated)

    state = learner.init(PARAMS, jax.random.key(0))
    state, metrics = learner.update(state, records, jnp.zeros(ROWS), is_expert, imitated)
    expected = jax.tree.map(
        lambda x, g: x + 0.1 * g, PARAMS["network"], jax.jit(jax.grad(dense))(PARAMS["network"])
    )
    assert_trees_close(state.params["network"], expected, rtol=1e-5)
    assert metrics["skipped"] == 0


def test_bad_batches_are_named():
    learner, records = make_learner(), make_records()
    state = learner.init(PARAMS, jax.random.key(0))
    with pytest.raises(ValueError, match=r"advantages .*\(5,\).* 6 "):
        learner.update(state, records, ADVANTAGES[:5])
    with pytest.raises(ValueError, match=r"expert\.count = 0"):
        learner.update(state, records, ADVANTAGES, jnp.zeros(ROWS, bool))
    with pytest.raises(ValueError, match=r"params\['temperature'\] has shape \(2,\)"):
        learner.init({**PARAMS, "temperature": jnp.ones(2)}, jax.random.key(0))
