"""A policy that is told alpha: its rows, its files, its likelihoods in training."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from jax_unmask import denoisers, policies, recipes
from jax_unmask.learners.policy_grpo import PolicyLearner
from jax_unmask.policies import LearnedPolicy, NetworkConfig
from jax_unmask.policies.base import PerRow
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import SettingError

NETWORK = NetworkConfig(
    hidden_dim=16,
    feedforward_dim=16,
    time_embed_dim=8,
    top_k=2,
    entropy=True,
    position=True,
    rank=True,
    candidate_attention=(4.0, 0.0),
    alphas=(0.1, 30.0),
    initial_bias=0.0,
)
POLICY = LearnedPolicy(network=NETWORK)
PARAMS = jax.jit(POLICY.init_params)(jax.random.key(3))


def test_each_row_acts_by_its_own_alpha(make_observation):
    obs = make_observation(0, rows=8)
    alphas = jnp.asarray([0.1, 30.0] * 4)
    logits = jax.jit(POLICY.logits)
    of_rows = logits({**PARAMS, "alpha": alphas}, obs)
    for alpha in (0.1, 30.0):
        alone = logits({**PARAMS, "alpha": jnp.asarray(alpha)}, obs)
        np.testing.assert_allclose(of_rows[alphas == alpha], alone[alphas == alpha], atol=1e-6)
    told_otherwise = logits({**PARAMS, "alpha": alphas[::-1]}, obs)
    assert (jnp.abs(of_rows - told_otherwise) > 1e-4).any(axis=-1).all()


def test_one_policy_for_every_length(make_observation):
    for length in (4, 24):
        logits = jax.eval_shape(POLICY.logits, PARAMS, make_observation(0, length=length))
        assert logits.shape == (4, length)


@pytest.mark.thorough
def test_the_learner_scores_actions_under_what_their_rows_were_told():
    config = tiny.denoiser_config()
    denoiser, weights = denoisers.Denoiser(config), tiny.random_params(config)
    prompts = Prompts(tokens=jnp.ones((6, 2), jnp.int32), mask=jnp.ones((6, 2), bool))
    alphas = jnp.geomspace(0.1, 30.0, 6)
    # Half as many slots as rows: a row takes its alpha along.
    done = rollout(
        denoiser,
        weights,
        POLICY,
        {**PARAMS, "alpha": PerRow(alphas)},
        prompts,
        row_keys(jax.random.key(0), 6),
        RolloutSettings(gen_length=8, block_length=8, record=True, slots=3),
    )
    learner = PolicyLearner(policy=POLICY, optimizer=optax.sgd(0.1), chunk_size=16)
    records = done.records
    told = learner.log_prob(PARAMS, records, None, {"alpha": alphas})
    np.testing.assert_allclose(
        told[records.active], records.action.log_prob[records.active], atol=1e-5
    )
    untold = learner.log_prob(PARAMS, records)
    assert (jnp.abs(told - untold) > 1e-4).any()

    # Before the first optimiser step no ratio differs from one; afterwards the weights do.
    state = learner.init(PARAMS, jax.random.key(1))
    advantages = jnp.asarray([1.0, -1.0] * 3)
    new, metrics = dataclasses.replace(learner, passes=1).update(
        state, records, advantages, settings={"alpha": alphas}
    )
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert not jax.tree.all(jax.tree.map(np.array_equal, state.params, new.params))
    assert new.params["alpha"] == PARAMS["alpha"]


def test_files_keep_what_a_policy_can_be_told(tmp_path):
    policies.save_policy(tmp_path, POLICY, {**PARAMS, "alpha": jnp.asarray(3.0)})
    policy, params = policies.load_policy(tmp_path)
    assert policy == POLICY
    assert params["alpha"] == 3
    _, params = policies.parse_policy(f"learned:{tmp_path},alpha=0.5")
    assert params["alpha"] == 0.5


def test_the_ends_of_its_range_can_be_told():
    for low, high in ((0.03, 100.0), (0.7, 33.3), (0.1, 30.0)):
        policy = LearnedPolicy(network=dataclasses.replace(NETWORK, alphas=(low, high)))
        for alpha in (low, high):
            assert policy.params(alpha=alpha)["alpha"] == np.float32(alpha)


@pytest.mark.parametrize("alpha", [0.05, 31, float("nan")])
def test_alphas_that_it_was_not_trained_for(tmp_path, alpha):
    policies.save_policy(tmp_path, POLICY, PARAMS)
    with pytest.raises(ValueError, match="alpha"):
        policies.parse_policy(f"learned:{tmp_path},alpha={alpha}")


def test_a_policy_of_one_alpha_takes_no_other():
    with pytest.raises(SettingError, match="alpha = 3"):
        LearnedPolicy().params(alpha=3)


@pytest.mark.parametrize("alphas", [(1.0,), (3.0, 1.0), (0.0, 1.0)])
def test_alphas_are_a_range(alphas):
    with pytest.raises(SettingError, match="alphas"):
        NetworkConfig(alphas=alphas)


@pytest.mark.thorough
def test_an_expert_that_names_no_alpha_is_told_that_of_its_group(tmp_path):
    tiny.save_model(tmp_path / "model", ["1", "2", "3", "4", ".", "="])
    policies.save_policy(tmp_path / "teacher", POLICY, PARAMS)
    config = recipes.config("policy_grpo")
    config.update_from_flattened_dict(
        tiny.SETTINGS["policy_grpo"]
        | {"model.path": str(tmp_path / "model"), "policy.network.alphas": (0.01, 10.0)}
        | {"expert.count": 2, "expert.block_length": 16, "expert.imitation": 1.0}
        | {"expert.imitation_steps": 1, "expert.imitated": "all"}
        | {"expert.policy": f"learned:{tmp_path}/teacher,distribution=threshold"}
    )
    recipe = recipes.find("policy_grpo")(recipes.read(config), tmp_path)
    state, timer = recipe.init(), Timer()
    (batch,) = itertools.islice(recipe.data(), 1)
    done = recipe.roll_out(recipe.bundle.params, state, batch, timer)
    records, alphas = done.expert.records, np.repeat(done.alphas[0][:: recipe._group], 2)
    assert len(set(alphas)) > 1
    teacher = dataclasses.replace(POLICY, distribution="threshold")
    first = jax.tree.map(lambda leaf: leaf[0], records.obs)
    told = {**PARAMS, "alpha": jnp.clip(alphas, 0.1, 30.0)}
    assert (records.action.fill[0] == teacher(told, first, None).fill).all()
    # None of its answers is right; all of them are imitated.
    assert not done.correct[1].any()
    _, metrics = recipe.learn(state, done, timer)
    assert metrics["imitated"] == 1
