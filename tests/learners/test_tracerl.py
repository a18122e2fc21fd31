"""The TraceRL learner against plain per-state forwards, and what must hold of every update."""

import functools

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import tiny
from devices import run_on_devices
from jax_unmask.denoisers import Denoiser, init_adapters, init_params
from jax_unmask.learners.advantages import trace_gae
from jax_unmask.learners.losses import clipped_objective, kl_estimate
from jax_unmask.learners.states import Responses, trainable_tokens
from jax_unmask.learners.surrogates import Elbo, FullyMasked, RandomMasking, Trace
from jax_unmask.learners.token_log_prob import token_log_prob
from jax_unmask.learners.tracerl import TraceLearner, ValueSettings
from jax_unmask.policies import parse_policy
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
from jax_unmask.runtime import streams

CONFIG = tiny.denoiser_config()
DENOISER = Denoiser(CONFIG)
ROWS, PROMPT, LENGTH = 4, 3, 6
KEPT = jnp.asarray([True, True, False, True])
STILL = optax.adam(0.0)  # One object: equal learners share their compiled update.
REWARDS = jnp.asarray([1.0, -0.5, 3.0, 0.7])


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def trajectory(params):
    """Sampled in blocks of 3, with one or more tokens per step, behind prompts of 1 to 3 tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 10, (ROWS, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) >= np.asarray([[0], [2], [1], [0]])
    policy, policy_params = parse_policy("threshold:threshold=0.12")
    settings = RolloutSettings(LENGTH, 3, temperature=1.0, record=True)
    return rollout(
        DENOISER,
        params,
        policy,
        policy_params,
        Prompts(jnp.asarray(tokens), jnp.asarray(mask)),
        row_keys(jax.random.key(4), ROWS),
        settings,
    )


@pytest.fixture(scope="module")
def responses(trajectory):
    return Responses(trajectory.prompts, trajectory.tokens, trajectory.step_map)


def make_learner(**settings) -> TraceLearner:
    defaults = {"optimizer": optax.sgd(0.5), "chunk_size": 3, "positions_per_chunk": 2}
    return TraceLearner(denoiser=DENOISER, **(defaults | settings))


def all_states(learner: TraceLearner, responses: Responses, key):
    """Every state of every response, numbered [N, B, ...], with its slot."""
    canvas, rows = learner.describe(responses), jnp.arange(ROWS)
    states = [
        learner.surrogate.states(canvas, key, jnp.full(ROWS, n), rows)
        for n in range(learner.num_states(LENGTH))
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def pass_key(key, index):
    """The key of what the states of a pass draw."""
    return streams.stream(key, "states", index)


class TestStates:
    def test_are_those_that_the_rollout_visited(self, trajectory, responses):
        states = all_states(make_learner(), responses, None)
        records = trajectory.records
        assert int(trajectory.nfe.max()) < LENGTH * 2
        assert (np.asarray(trajectory.nfe) < LENGTH).any(), "no step fills more than one token"
        for b in range(ROWS):
            for t in range(LENGTH):
                if t >= trajectory.nfe[b]:
                    assert not states.trained[t, b].any()
                    continue
                np.testing.assert_array_equal(states.masked[t, b], records.obs.masked[t, b])
                filled = records.action.fill[t, b] & records.obs.legal[t, b]
                np.testing.assert_array_equal(states.trained[t, b], filled)

    def test_likelihoods_are_those_of_the_rollout(self, params, trajectory, responses):
        # The rollout noted the probability of each token when it was filled in.
        found = gradients.log_probs(make_learner(), params, responses, KEPT, jax.random.key(0))
        expected = np.where(KEPT[:, None], np.log(trajectory.confidence), 0.0)
        np.testing.assert_allclose(found[0], expected, atol=1e-5)

    @pytest.mark.parametrize("shrink", [1, 2, LENGTH])
    def test_train_every_token_once(self, responses, shrink):
        learner = make_learner(surrogate=Trace(shrink=shrink))
        states = all_states(learner, responses, None)
        assert states.trained.shape[0] == -(-LENGTH // shrink)
        np.testing.assert_array_equal(states.trained.sum(axis=0), responses.step_map >= 0)
        assert not (states.trained & ~states.masked).any()

    def test_padding_and_holes_are_masked_and_not_trained(self):
        tokens = jnp.asarray([[1, 10, 10, 2, 11, 10]])
        steps = jnp.asarray([[0, 2, 1, 0, -1, 2]])
        prompts = Prompts(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
        learner = make_learner(num_pads=1)
        canvas = learner.describe(Responses(prompts, tokens, steps))
        assert canvas.trainable.tolist() == [[True, True, False, True, False, False]]
        state = functools.partial(learner.surrogate.states, canvas, None, row=jnp.zeros(1, int))
        assert state(index=jnp.asarray([1])).masked.tolist() == [[0, 1, 1, 0, 1, 1]]
        assert not state(index=jnp.asarray([1])).trained.any()
        assert state(index=jnp.asarray([2])).trained.tolist() == [[0, 1, 0, 0, 0, 0]]
        # What stands behind the end is padding.
        found = trainable_tokens(jnp.asarray([[1, 9, 2, 10, 3, 4]]), jnp.zeros((1, 6)), 10, 1, (9,))
        assert found.tolist() == [[True, True, True, False, False, False]]


class TestSurrogates:
    def test_complements_train_every_token_once(self, responses):
        for surrogate in (RandomMasking(draws=3, complement=True), Elbo(draws=3)):
            learner = make_learner(surrogate=surrogate, num_pads=0)
            trainable = learner.describe(responses).trainable
            states = all_states(learner, responses, jax.random.key(1))
            pairs = states.trained.reshape(3, 2, ROWS, LENGTH).sum(axis=1)
            np.testing.assert_array_equal(pairs, jnp.broadcast_to(trainable, pairs.shape))
            np.testing.assert_array_equal(states.masked, states.trained | ~trainable)
            assert len({bytes(np.asarray(mask)) for mask in states.masked[::2]}) > 1

    def test_ratios_of_random_masks(self):
        length, draws = 400, 40
        responses = Responses(
            Prompts(jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool)),
            jnp.ones((2, length), jnp.int32),
            jnp.zeros((2, length), jnp.int32),
        )
        shares = {}
        for threshold in ("row", "token"):
            surrogate = RandomMasking(draws=draws, mask_threshold=threshold)
            canvas = make_learner(surrogate=surrogate).describe(responses)
            index = jnp.arange(draws)
            states = surrogate.states(canvas, jax.random.key(2), index, jnp.zeros(draws, int))
            shares[threshold] = np.asarray(states.masked.mean(axis=1))
        assert 0.05 < shares["row"].min() < 0.3
        assert 0.7 < shares["row"].max() < 0.95
        np.testing.assert_allclose(shares["token"], 0.5, atol=0.12)

    def test_prompts_of_fully_masked_canvases(self, responses):
        learner = make_learner(surrogate=FullyMasked(draws=20, prompt_mask_ratio=0.5))
        states = all_states(learner, responses, jax.random.key(3))
        assert states.masked.all()
        assert not (states.prompt_masked & ~responses.prompts.mask).any()
        assert 0.3 < float(states.prompt_masked[:, responses.prompts.mask].mean()) < 0.7


def naive_gradient(learner, advantages, responses):
    """Gradient of an optimiser step with every logit of every state: of (params, old, states)."""
    tokens = responses.tokens

    def scores(params, states):
        out = []
        for n in range(states.masked.shape[0]):
            prompt = responses.prompts.tokens
            if states.prompt_masked is not None:
                prompt = jnp.where(states.prompt_masked[n], CONFIG.mask_token_id, prompt)
            noisy = jnp.where(states.masked[n], CONFIG.mask_token_id, tokens)
            logits = DENOISER.apply(
                {"params": params},
                jnp.concatenate([prompt, noisy], axis=1),
                attention_mask=jnp.concatenate(
                    [responses.prompts.mask, jnp.ones(tokens.shape, bool)], axis=1
                ),
            )[:, PROMPT:]
            log_p = jax.nn.log_softmax(logits)
            out.append(jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0])
        return jnp.stack(out)

    def loss(params, old, states):
        trained = states.trained & KEPT[None, :, None]
        count = trained.sum(axis=-1)
        ratio = jnp.where(trained, scores(params, states) - scores(old, states), 0.0)
        weight = trained / jnp.maximum(count, 1)[..., None]
        advantage = jnp.broadcast_to(advantages[None, :, None], ratio.shape)
        exists = count > 0
        if learner.surrogate.unit == "sequence":
            ratio = (weight * ratio).sum(axis=(0, 2)) / jnp.maximum(exists.sum(axis=0), 1)
            advantage, weight, total = advantages, exists.any(axis=0), exists.any(axis=0).sum()
        else:
            total = exists.sum()
        ratio = jnp.clip(ratio, -learner.ratio_limit, learner.ratio_limit)
        per_unit = learner.beta * kl_estimate(ratio, learner.kl)
        per_unit -= clipped_objective(ratio, jnp.zeros_like(ratio), advantage, learner.clip)
        return jnp.sum(weight * per_unit) / total

    return jax.jit(jax.grad(loss))


class TestUpdate:
    @pytest.mark.parametrize(
        "surrogate",
        [Trace(shrink=2), FullyMasked(draws=1, prompt_mask_ratio=0.5), Elbo()],
        ids=lambda surrogate: type(surrogate).__name__,
    )
    @pytest.mark.thorough
    def test_against_plain_differentiation(self, params, responses, surrogate):
        learner = make_learner(surrogate=surrogate, passes=2, beta=0.3, clip=0.02)
        state = learner.init(params, jax.random.key(7))
        key = state.step_key()
        new, metrics = learner.update(state, responses, REWARDS, KEPT)

        expected, gradient = params, naive_gradient(learner, REWARDS, responses)
        for index in range(2):
            states = all_states(learner, responses, pass_key(key, index))
            grads = gradient(expected, params, states)
            expected = jax.tree.map(lambda p, g: p - 0.5 * g, expected, grads)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
            new.params["denoiser"],
            expected,
        )
        assert float(metrics["clip_fraction"]) > 0
        assert float(metrics["kl"]) > 0

    def test_first_update_is_on_policy(self, params, responses):
        learner = make_learner(optimizer=STILL, passes=2, minibatches=3)
        state = learner.init(params, jax.random.key(7))
        new, metrics = learner.update(state, responses, REWARDS, KEPT)
        assert float(metrics["ratio_max"]) == pytest.approx(1.0, abs=1e-5)
        assert float(metrics["kl"]) == pytest.approx(0.0, abs=1e-6)
        assert float(metrics["clip_fraction"]) == 0
        filled = np.asarray((responses.step_map >= 0) & KEPT[:, None]).sum()
        assert float(metrics["trained_tokens"]) == filled
        jax.tree.map(np.testing.assert_array_equal, new.params["denoiser"], params)

    def test_nothing_kept_changes_nothing(self, params, responses):
        learner = make_learner(optimizer=STILL, passes=2, minibatches=3)
        state = learner.init(params, jax.random.key(7))
        before = jax.tree.map(np.asarray, (state.params, state.opt_state))
        new, metrics = learner.update(state, responses, jnp.full(ROWS, jnp.nan), KEPT & False)
        jax.tree.map(np.testing.assert_array_equal, (new.params, new.opt_state), before)
        assert float(metrics["skipped"]) == 1
        assert all(np.isfinite(value) for value in metrics.values())
        assert int(new.step) == 1

    def test_reference(self, params, responses):
        learner = make_learner(beta=0.0, reference_beta=1.0, optimizer=optax.sgd(0.05))
        reference = jax.tree.map(lambda leaf: leaf + 0.1, params)
        state = learner.init(params, jax.random.key(7))
        new, metrics = learner.update(state, responses, 0 * REWARDS, KEPT, reference)
        # Without advantages the gradient is that of the reference, and the distance to it shrinks.
        _, after = learner.update(new, responses, 0 * REWARDS, KEPT, reference)
        assert 0 < float(after["reference_kl"]) < float(metrics["reference_kl"])
        with pytest.raises(ValueError, match=r"reference_beta=1\.0 "):
            learner.update(after, responses, REWARDS, KEPT)


class TestValueModel:
    @pytest.mark.thorough
    def test_starts_at_zero_and_learns_the_rewards(self, params, responses):
        value = ValueSettings(optimizer=optax.adam(1e-2), clip=10.0)
        learner = make_learner(value=value)
        plain = make_learner()
        new, metrics = learner.update(
            learner.init(params, jax.random.key(7)), responses, REWARDS, KEPT
        )
        other, _ = plain.update(plain.init(params, jax.random.key(7)), responses, REWARDS, KEPT)
        # V = 0 and gamma = lambda = 1: the first advantages are the rewards themselves.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            new.params["denoiser"],
            other.params["denoiser"],
        )
        assert "head" not in new.params["value"]["backbone"]
        first = float(metrics["value_error"])
        for _ in range(30):
            new, metrics = learner.update(new, responses, REWARDS, KEPT)
        assert float(metrics["value_error"]) < 0.5 * first


class TestAdapters:
    @pytest.mark.thorough
    def test_step_is_that_of_the_weights_projected(self, params, responses):
        # W + A B with B = 0 moves B by A^T times the step of W, and A not at all.
        value = ValueSettings(optimizer=optax.sgd(0.5))
        learner, key = make_learner(value=value), jax.random.key(0)
        adapters = init_adapters(CONFIG, jax.random.key(7), rank=2, targets=("query", "down"))
        state = learner.init(params, key)
        full, _ = learner.update(state, responses, REWARDS, KEPT)
        state = learner.init(params, key, adapters)
        low, metrics = learner.update(state, responses, REWARDS, KEPT, base=params)
        assert metrics["skipped"] == 0
        assert jax.tree.structure(low.params["value"]["backbone"]) == jax.tree.structure(adapters)
        moved = flatten_dict(full.params["denoiser"])
        before, given = flatten_dict(params), flatten_dict(adapters)
        for path, leaf in flatten_dict(low.params["denoiser"]).items():
            if path[-1] == "lora_a":
                np.testing.assert_array_equal(leaf, given[path])
                continue
            kernel = (*path[:-1], "kernel")
            step = moved[kernel] - before[kernel]
            expected = jnp.swapaxes(given[*path[:-1], "lora_a"], -1, -2) @ step
            assert jnp.abs(expected).max() > 1e-4
            np.testing.assert_allclose(leaf, expected, atol=2e-6)


class TestGae:
    def test_identities(self):
        rng = np.random.default_rng(1)
        time = jnp.asarray(rng.integers(0, 5, (3, 8)))
        trained = jnp.asarray(rng.random((3, 8)) < 0.8)
        rewards, values = (jnp.asarray(rng.normal(size=(3, 8)), jnp.float32) for _ in range(2))
        gae = jax.jit(trace_gae)
        found = gae(rewards, values, time, trained, 1.0, 1.0)
        counted = jnp.where(trained, found.returns - values, 0.0)
        np.testing.assert_allclose(found.advantages, counted, atol=1e-5)
        found = gae(rewards, values, time, trained, 0.9, 0.0)
        for b in range(3):
            for j in np.flatnonzero(trained[b]):
                later = np.flatnonzero(trained[b] & (time[b] > time[b, j]))
                mean = 0.0
                if len(later):
                    following = trained[b] & (time[b] == time[b, later].min())
                    mean = float(values[b][following].mean())
                expected = float(rewards[b, j] - values[b, j]) + 0.9 * mean
                assert float(found.advantages[b, j]) == pytest.approx(expected, abs=1e-5)


def test_token_log_prob_and_its_gradient():
    rng = np.random.default_rng(0)
    table, hidden = (jnp.asarray(rng.normal(size=(n, 5)), jnp.float32) for n in (7, 9))
    labels = jnp.asarray(rng.integers(0, 7, 9))
    wanted = jnp.asarray(rng.random(9) < 0.6)
    weight = jnp.asarray(rng.normal(size=9), jnp.float32)

    def ours(table, hidden):
        return jnp.sum(weight * token_log_prob(table, hidden, labels, wanted, 2, 0.7))

    def plain(table, hidden):
        log_p = jax.nn.log_softmax(hidden @ table.T / 0.7)
        chosen = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(wanted, weight * chosen, 0.0))

    both = (jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (ours, plain))
    found, expected = (f(table, hidden) for f in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


ON_A_MESH = """
import re
import jax, numpy as np, optax, tiny
from jax.sharding import NamedSharding
from jax_unmask.denoisers import Denoiser, init_params
from jax_unmask.learners.states import Responses
from jax_unmask.learners.tracerl import TraceLearner
from jax_unmask.rollout import Prompts
from jax_unmask.runtime.mesh import make_mesh, spec

config, rng, rows = tiny.denoiser_config(), np.random.default_rng(0), 16
learner = TraceLearner(
    denoiser=Denoiser(config), optimizer=optax.sgd(0.1), minibatches=2, chunk_size=4,
    reference_beta=0.1,
)
params = init_params(config, jax.random.key(0))
state = learner.init(params, jax.random.key(1))
prompts = Prompts(rng.integers(0, 10, (rows, 3), np.int32), np.ones((rows, 3), bool))
canvases, steps = (rng.integers(0, high, (rows, 6), np.int32) for high in (10, 3))
batch = Responses(prompts, canvases, steps), np.ones(rows, np.float32), np.ones(rows, bool)
mesh = make_mesh(fsdp=4)
jax.set_mesh(mesh)
batch = jax.device_put(batch, NamedSharding(mesh, spec("batch")))
text = TraceLearner.update.lower(learner, state, *batch, params).compile().as_text()
print(sorted(set(re.findall(r"f32\\[1,1,[0-9]+,6\\]", text))))
"""


@pytest.mark.thorough
def test_log_probabilities_of_the_old_parameters_lie_in_shards():
    """[sets, slots, B, L], of the parameters before the update and of the reference."""
    assert run_on_devices(4, ON_A_MESH).strip() == "['f32[1,1,4,6]']"
