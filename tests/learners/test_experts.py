"""Expert rollouts in a policy's groups: order, what becomes legal, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from jax_unmask.denoisers import Denoiser
from jax_unmask.learners.experts import ExpertSettings, merge_groups, with_experts
from jax_unmask.learners.losses import mixture_log_prob
from jax_unmask.learners.policy_grpo import PolicyLearner
from jax_unmask.policies.base import Action, Needs, WithObservations
from jax_unmask.policies.learned import LearnedPolicy
from jax_unmask.policies.network import NetworkConfig
from jax_unmask.rollout.loop import rollout, row_keys
from jax_unmask.rollout.trajectory import Prompts, RolloutSettings

PROMPTS, GROUP, EXPERTS, LENGTH, BLOCK = 2, 2, 1, 8, 4
NETWORK = NetworkConfig(hidden_dim=16, feedforward_dim=16, time_embed_dim=8, top_k=2, entropy=True)
DENOISER = Denoiser(tiny.denoiser_config(vocab_size=16))


@dataclasses.dataclass(frozen=True)
class TwoBest:
    """Fills the two most confident legal positions; a deterministic expert."""

    needs: Needs = dataclasses.field(default_factory=Needs)

    def __call__(self, params, obs, keys):
        confidence = jnp.where(obs.legal, obs.confidence, -1.0)
        rank = jnp.argsort(jnp.argsort(-confidence, axis=-1), axis=-1)
        return Action(fill=(rank < 2) & obs.legal, log_prob=jnp.zeros(obs.legal.shape[:-1]))


def roll(policy, params, rows, block_length=LENGTH):
    rng = np.random.default_rng(0)
    tokens = np.repeat(rng.integers(0, 14, (PROMPTS, 3)), rows, axis=0).astype(np.int32)
    denoiser_params = tiny.random_params(DENOISER.config)
    return rollout(
        DENOISER,
        denoiser_params,
        policy,
        params,
        Prompts(tokens=jnp.asarray(tokens), mask=jnp.ones(tokens.shape, bool)),
        row_keys(jax.random.key(1), len(tokens)),
        RolloutSettings(LENGTH, block_length, record=True),
    )


def learned(distribution):
    policy = LearnedPolicy(network=NETWORK, distribution=distribution)
    return policy, policy.init_params(jax.random.key(3), LENGTH)


@pytest.fixture(scope="module", params=["bernoulli", "dpls"])
def rollouts(request):
    policy, params = learned(request.param)
    ours = roll(policy, params, GROUP)
    theirs = roll(WithObservations(TwoBest(), policy.needs), {}, EXPERTS, BLOCK)
    return policy, params, ours.records, theirs.records


def test_merge_groups_keeps_prompts_together():
    policy = {"x": np.arange(8).reshape(2, 4), "y": np.arange(4)[None]}
    expert = {"x": np.array([[10, 20], [30, 40]]), "y": np.array([[7, 8]])}
    merged = merge_groups(policy, expert, group_size=2, num_experts=1, axis=1)
    np.testing.assert_array_equal(merged["x"], [[0, 1, 10, 2, 3, 20], [4, 5, 30, 6, 7, 40]])
    np.testing.assert_array_equal(merged["y"], [[0, 1, 7, 2, 3, 8]])


@pytest.mark.default_cases("dpls")
def test_expert_records_as_the_policy_sees_them(rollouts):
    policy, _, ours, theirs = rollouts
    records, is_expert = with_experts(ours, theirs, GROUP, EXPERTS)
    np.testing.assert_array_equal(is_expert, [False, False, True] * PROMPTS)
    obs, expert = records.obs, np.asarray(is_expert)
    np.testing.assert_array_equal(obs.legal[:, expert], theirs.obs.masked)
    assert np.any(np.asarray(theirs.obs.masked) & ~np.asarray(theirs.obs.legal))
    np.testing.assert_array_equal(obs.confidence[:, expert], theirs.obs.confidence)
    np.testing.assert_array_equal(obs.entropy[:, expert], theirs.obs.entropy)
    np.testing.assert_array_equal(records.action.fill[:, expert], theirs.action.fill)
    np.testing.assert_array_equal(records.active[:, expert], theirs.active)
    assert obs.block_length == LENGTH
    assert not np.any(obs.block_start[:, expert])
    # The policy's own rows are as they were.
    mine = jax.tree.map(lambda x: x[:, ~expert], records)
    jax.tree.map(np.testing.assert_array_equal, mine, ours)
    if policy.distribution == "dpls":
        rank = np.asarray(records.action.rank)[:, expert]
        fill = np.asarray(theirs.action.fill)
        np.testing.assert_array_equal(rank > 0, fill)
        confidence = np.asarray(theirs.obs.confidence)
        first = (confidence * (rank == 1)).sum(-1)
        np.testing.assert_array_equal(first, (confidence * fill).max(-1))


def test_recorded_log_probs_are_those_of_the_learner(rollouts):
    policy, params, ours, _ = rollouts
    learner = PolicyLearner(policy=policy, optimizer=optax.sgd(1.0), chunk_size=16)
    got = learner.log_prob(params, ours)
    np.testing.assert_allclose(
        got, np.where(ours.active, ours.action.log_prob, 0.0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rollouts", ["dpls"], indirect=True)
@pytest.mark.thorough
def test_an_expert_that_did_better_becomes_likelier(rollouts):
    policy, params, ours, theirs = rollouts
    records, is_expert = with_experts(ours, theirs, GROUP, EXPERTS)
    learner = PolicyLearner(
        policy=policy,
        optimizer=optax.adam(1e-2),
        chunk_size=16,
        group_size=GROUP,
        expert=ExpertSettings(count=EXPERTS),
    )
    state = learner.init(params, jax.random.key(0))
    advantages = jnp.where(is_expert, 1.0, 0.0)

    def likelihood(params):
        log_prob = learner.log_prob(params, records)[:, np.asarray(is_expert)]
        return float(mixture_log_prob(log_prob, GROUP, EXPERTS).sum())

    for _ in range(3):
        state, metrics = learner.update(state, records, advantages, is_expert)
    assert likelihood(state.params) > likelihood(params) + 0.05
    assert np.isfinite(float(metrics["loss"]))


def test_records_that_do_not_match_are_refused(rollouts):
    _, _, ours, theirs = rollouts
    semi = ours.replace(obs=ours.obs.replace(block_length=BLOCK))
    blind, narrow = (
        theirs.replace(obs=theirs.obs.replace(**change))
        for change in ({"entropy": None}, {"top_probs": theirs.obs.top_probs[..., :1]})
    )
    shorter = jax.tree.map(lambda x: x[..., :4] if x.ndim == 3 else x, theirs)
    for policy, expert, words in (
        (semi, theirs, f"block_length={BLOCK} and gen_length={LENGTH}"),
        (ours, blind, "observes entropy"),
        (ours, narrow, "observes top_k=2"),
        (ours, shorter, "gen_length=4 differs"),
    ):
        with pytest.raises(ValueError, match=words):
            with_experts(policy, expert, GROUP, EXPERTS)
