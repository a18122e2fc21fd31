"""Policies that take tokens back: what they see, what becomes of it, and how they are trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import policies
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.learners.experts import with_experts
from jax_unmask.policies import LearnedPolicy, NetworkConfig, heuristics
from jax_unmask.policies.base import Action, Needs, WithObservations
from jax_unmask.report import traces
from jax_unmask.rollout import Cache, Prompts, RolloutSettings, rollout, row_keys

MASK, LENGTH, ROWS = 2, 8, 4
RECORDED = RolloutSettings(gen_length=LENGTH, block_length=LENGTH, record=True)
NETWORK = NetworkConfig(
    hidden_dim=16,
    feedforward_dim=16,
    time_embed_dim=8,
    entropy=True,
    rank=True,
    candidate_attention=(4.0, 0.0),
    initial_bias=0.0,
    take_back=True,
)
POLICY = LearnedPolicy(network=NETWORK)
SCORES = jax.jit(POLICY.log_prob_and_entropy)
LOGITS = jax.jit(POLICY.logits)


@pytest.fixture(scope="module")
def params():
    params = POLICY.init_params(jax.random.key(1))

    return params


@pytest.fixture(scope="module")
def prompts():
    tokens = np.random.default_rng(0).integers(3, 20, (ROWS, 4), dtype=np.int32)
    return Prompts(tokens=tokens, mask=np.ones((ROWS, 4), bool))


@pytest.fixture(scope="module")
def trajectory(random_model, params, prompts):
    keys = row_keys(jax.random.key(0), ROWS)
    return rollout(*random_model, POLICY, params, prompts, keys, RECORDED)


@dataclasses.dataclass(frozen=True)
class Indecisive:
    """Fills two positions per step, and would take back every token at every step."""

    @property
    def needs(self) -> Needs:
        return Needs(filled=True)

    def __call__(self, params, obs, keys):
        fill = obs.legal & (jnp.cumsum(obs.legal, axis=-1) <= 2)
        none = jnp.zeros(fill.shape[0])
        return Action(fill=fill, log_prob=none, take_back=jnp.ones_like(fill))


@pytest.mark.parametrize("cache", [None, Cache("dual")])
def test_a_policy_that_never_stops_taking_back_fills_its_blocks_all_the_same(
    random_model, prompts, cache
):
    settings = RolloutSettings(gen_length=LENGTH, block_length=4, cache=cache)
    out = rollout(
        *random_model, Indecisive(), None, prompts, row_keys(jax.random.key(0), ROWS), settings
    )
    assert (np.asarray(out.tokens) != MASK).all()
    # In each block of four the second step takes back two; after the third one step is left.
    np.testing.assert_array_equal(out.nfe, 6)
    np.testing.assert_array_equal(out.step_map, [[2, 2, 1, 1, 5, 5, 4, 4]] * ROWS)


def test_what_is_taken_back_is_filled_anew_in_steps_of_the_same_block(trajectory):
    obs, action = trajectory.records.obs, trajectory.records.action
    masked, active = np.asarray(obs.masked), np.asarray(trajectory.records.active)
    back = np.asarray(action.take_back) & active[..., None]
    assert back.any()
    for step in range(len(masked) - 1):
        going_on = active[step + 1]
        filled = masked[step] & np.asarray(action.fill[step])
        after = (masked[step] & ~filled) | back[step]
        enough = after.sum(axis=-1) <= LENGTH - (step + 1)
        after = np.where(enough[:, None], after, masked[step] & ~filled)
        np.testing.assert_array_equal(masked[step + 1][going_on], after[going_on])
    # Steps and confidences are those of the last time that a position was filled.
    for row, position in np.argwhere(np.asarray(trajectory.step_map) >= 0):
        step = trajectory.step_map[row, position]
        assert masked[step, row, position]
        assert action.fill[step, row, position]
        assert trajectory.confidence[row, position] == obs.confidence[step, row, position]


def test_the_policy_sees_what_stands_there(random_model, trajectory, prompts):
    model, weights = random_model
    obs, active = trajectory.records.obs, np.asarray(trajectory.records.active)
    filled = jax.tree.map(np.asarray, obs.filled)
    np.testing.assert_array_equal(filled.token == MASK, np.asarray(obs.masked))
    np.testing.assert_array_equal(filled.legal[active], ~np.asarray(obs.masked)[active])
    step = 2
    tokens = np.concatenate([prompts.tokens, filled.token[step]], axis=1)
    logits = model.apply({"params": weights}, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))[
        :, -LENGTH:
    ]
    expected = np.take_along_axis(
        np.asarray(jax.nn.softmax(logits)), filled.token[step][..., None], axis=-1
    )[..., 0]
    shown = active[step][:, None] & filled.legal[step]
    np.testing.assert_allclose(filled.probability[step][shown], expected[shown], atol=1e-5)
    assert not filled.probability[~filled.legal].any()
    assert set(filled.age[step][shown].tolist()) <= {1, 2}


def test_neither_slots_nor_neighbours_change_a_row(random_model, params, trajectory, prompts):
    two = dataclasses.replace(RECORDED, slots=2)
    again = rollout(*random_model, POLICY, params, prompts, row_keys(jax.random.key(0), ROWS), two)
    for name in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trajectory, name))


def test_the_learner_scores_what_was_drawn(trajectory, params):
    records = trajectory.records
    score, entropy = SCORES(params, records.obs, records.action)
    active = np.asarray(records.active)
    np.testing.assert_allclose(
        np.asarray(score)[active], np.asarray(records.action.log_prob)[active], atol=1e-4
    )
    kept = dataclasses.replace(records.action, take_back=jnp.zeros_like(records.action.take_back))
    other, _ = SCORES(params, records.obs, kept)
    differs = np.asarray(records.action.take_back).any(axis=-1) & active
    assert (np.asarray(other)[differs] != np.asarray(score)[differs]).all()
    assert (np.asarray(entropy)[active] > 0).all()


def test_experts_take_nothing_back(random_model, trajectory, prompts, params):
    rule = heuristics.Threshold()
    settings = dataclasses.replace(RECORDED, block_length=4)
    expert = rollout(
        *random_model,
        WithObservations(rule, POLICY.needs),
        rule.params(threshold=0.5),
        prompts,
        row_keys(jax.random.key(1), ROWS),
        settings,
    )
    records, is_expert = with_experts(trajectory.records, expert.records, 1, 1)
    assert not np.asarray(records.action.take_back)[:, np.asarray(is_expert)].any()
    assert np.isfinite(SCORES(params, records.obs, records.action)[0]).all()


def test_the_viewer_knows_when_a_token_went(trajectory):
    row = int(np.asarray(trajectory.records.action.take_back).any(axis=(0, 2)).argmax())
    found = traces.trace(
        jax.tree.map(np.asarray, trajectory),
        row,
        lambda tokens: [f"<{token}>" for token in tokens],
        method="learned",
        settings="",
        text="",
        block_length=LENGTH,
    )
    writes = [w for made in found["steps"]["rewritten"].values() for w in made]
    masked = np.asarray(trajectory.records.obs.masked[: found["nfe"], row])
    gone = [[int(step), None, 0.0] for step, _ in np.argwhere(~masked[:-1] & masked[1:])]
    assert gone
    assert sorted(w for w in writes if w[1] is None) == sorted(gone)


def test_a_file_keeps_it(tmp_path, params, trajectory):
    policies.save_policy(tmp_path, POLICY, params)
    policy, loaded = policies.load_policy(tmp_path)
    assert policy.network == NETWORK
    first = jax.tree.map(lambda x: x[2], trajectory.records.obs)
    assert policy == dataclasses.replace(POLICY, distribution=policy.distribution)
    np.testing.assert_array_equal(LOGITS(loaded, first), LOGITS(params, first))


def test_a_filtered_draw_is_refused(random_model, params, prompts):
    sampling = Sampling(top_k=3, filtered_confidence=True)
    settings = dataclasses.replace(RECORDED, temperature=0.5, sampling=sampling)
    with pytest.raises(ValueError, match="top_k"):
        rollout(*random_model, POLICY, params, prompts, row_keys(jax.random.key(0), ROWS), settings)
