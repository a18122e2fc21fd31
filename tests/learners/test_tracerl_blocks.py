"""Block attention: all blocks of a response at once, in states that the rollout visited."""

import dataclasses
import json
import pathlib

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from safetensors.numpy import load_file

import tiny
from jax_unmask.denoisers import Denoiser, from_pretrained, init_params
from jax_unmask.denoisers import attention as attention_module
from jax_unmask.denoisers.attention import Copies, attention, attention_in_copies
from jax_unmask.learners.states import AttentionBlocks, Responses, StateBatch
from jax_unmask.learners.surrogates import RandomMasking, Trace
from jax_unmask.learners.tracerl import TraceLearner, TraceLoss
from jax_unmask.learners.value_model import token_values
from jax_unmask.policies import parse_policy
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
META = json.loads((FIXTURES / "tracerl" / "meta.json").read_text())
CASES = {case["name"]: case for case in META["cases"]}
ARRAYS = load_file(FIXTURES / "tracerl" / "cases.safetensors")
CONFIG = tiny.denoiser_config(
    family="sdar", num_layers=2, num_kv_heads=1, qk_norm=True, attention_block=4
)
DENOISER = Denoiser(CONFIG)
PROMPT, LENGTH = 7, 10
# All phases of a block of four.
PROMPT_LENGTHS = np.asarray([4, 5, 6, 7])


class FromResponse(AttentionBlocks):
    """Blocks as the public code of TraceRL trains them: from the first response token."""

    def of_positions(self, positions, prompt):
        return (positions - jnp.sum(prompt, axis=-1, keepdims=True)) // self.length


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def model():
    return from_pretrained(FIXTURES / "sdar")


@pytest.fixture(scope="module")
def trajectory(params):
    rng = np.random.default_rng(0)
    prompts = Prompts(
        jnp.asarray(rng.integers(0, 10, (4, PROMPT)), jnp.int32),
        jnp.asarray(np.arange(PROMPT) >= PROMPT - PROMPT_LENGTHS[:, None]),
    )
    policy, policy_params = parse_policy("threshold:threshold=0.12")
    settings = RolloutSettings(LENGTH, 5, temperature=1.0, record=True)
    keys = row_keys(jax.random.key(4), 4)
    return rollout(DENOISER, params, policy, policy_params, prompts, keys, settings)


def responses_of(trajectory) -> Responses:
    return Responses(trajectory.prompts, trajectory.tokens, trajectory.step_map)


def make_learner(length: int = 5, **settings) -> TraceLearner:
    defaults = {"optimizer": optax.sgd(0.5), "chunk_size": 3, "positions_per_chunk": 4}
    return TraceLearner(denoiser=DENOISER, blocks=AttentionBlocks(length), **(defaults | settings))


class TestAgainstTheRollout:
    """Its blocks are of 5 tokens, so that prompts of 4 to 7 begin and end anywhere in them."""

    @pytest.mark.thorough
    def test_states(self, trajectory):
        learner, records = make_learner(), trajectory.records
        canvas = learner.describe(responses_of(trajectory))
        assert {tuple(row) for row in np.asarray(canvas.block_of).tolist()} == {
            tuple((length % 5 + np.arange(LENGTH)) // 5) for length in PROMPT_LENGTHS
        }
        visited = 0
        for b in range(4):
            for t in range(int(trajectory.nfe[b])):
                filled = np.asarray(records.action.fill[t, b] & records.obs.legal[t, b])
                (group,) = set(np.asarray(canvas.group[b])[filled].tolist())
                (block,) = set(np.asarray(canvas.block_of[b])[filled].tolist())
                here = np.asarray(canvas.block_of[b]) == block
                state = learner.surrogate.states(canvas, None, jnp.full(1, group), jnp.full(1, b))
                np.testing.assert_array_equal(state.masked[0] & here, records.obs.legal[t, b])
                np.testing.assert_array_equal(state.trained[0] & here, filled)
                visited += 1
        assert visited > 8

    def test_likelihoods(self, params, trajectory):
        # Each was noted at a forward of its own, in which later blocks were masks; these come from
        # at most five forwards over all blocks.
        learner = make_learner()
        assert learner.num_states(LENGTH) == 5
        kept, key = jnp.ones(4, bool), jax.random.key(0)
        found = gradients.log_probs(learner, params, responses_of(trajectory), kept, key)
        np.testing.assert_allclose(found[0], np.log(trajectory.confidence), atol=1e-5)

    @pytest.mark.parametrize(("length", "shrink"), [(5, 2), (8, 1), (10, 3), (20, 1)])
    def test_every_token_once_whatever_the_blocks(self, trajectory, length, shrink):
        learner = make_learner(length, surrogate=Trace(shrink=shrink))
        canvas = learner.describe(responses_of(trajectory))
        states = [
            learner.surrogate.states(canvas, None, jnp.full(4, n), jnp.arange(4)).trained
            for n in range(learner.num_states(LENGTH))
        ]
        np.testing.assert_array_equal(sum(np.asarray(s) * 1 for s in states), canvas.trainable)

    def test_a_mask_ratio_for_each_block(self, trajectory):
        surrogate = RandomMasking(draws=1, mask_threshold="block", mask_low=0.0, mask_high=1.0)
        learner = make_learner(surrogate=surrogate)
        canvas = learner.describe(responses_of(trajectory))

        @jax.jit
        @jax.vmap
        def shares_of(key):
            masked = surrogate.states(canvas, key, jnp.zeros(4, int), jnp.arange(4)).masked[1]
            return jnp.stack([masked[:5].mean(), masked[5:].mean()])

        shares = np.asarray(shares_of(jax.random.split(jax.random.key(0), 200)))
        # Row 1 begins a block. Uniform ratios spread shares far wider than fair coins (0.22) do.
        assert (shares.std(axis=0) > 0.28).all()
        assert abs(np.corrcoef(shares.T)[0, 1]) < 0.3


class TestCopies:
    @pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mask")])
    def test_golden_masks(self, name):
        case = CASES[name]
        prompt, length = case["prompt_length"], case["response_length"]
        blocks = FromResponse(case["block_size"])
        places = np.concatenate([np.arange(prompt + length), prompt + np.arange(length)])[None]
        real = jnp.ones(places.shape, bool)
        copies = Copies(
            block=blocks.of_positions(jnp.asarray(places), jnp.ones((1, prompt), bool)),
            noisy=jnp.arange(places.shape[1])[None] >= prompt + length,
            real=real,
        )
        np.testing.assert_array_equal(
            copies.visible(copies.block, copies.noisy)[0], ARRAYS[name].astype(bool)
        )

    def test_golden_mask_with_padding(self):
        case, ids = CASES["padmask"], ARRAYS["padmask.input_ids"]
        prompt, length = case["prompt_length"], case["response_length"]
        real = (ids != case["pad_id"]) | (np.arange(ids.shape[1]) >= prompt)
        places = np.cumsum(real[:, : prompt + length], axis=1) - 1
        places = np.concatenate([places, places[:, prompt:]], axis=1)
        blocks = FromResponse(case["block_size"])
        copies = Copies(
            block=blocks.of_positions(jnp.asarray(places), jnp.asarray(real[:, :prompt])),
            noisy=jnp.broadcast_to(jnp.arange(ids.shape[1]) >= prompt + length, ids.shape),
            real=jnp.asarray(real),
        )
        found = np.asarray(copies.visible(copies.block, copies.noisy))
        # Nothing reads what padding sees.
        np.testing.assert_array_equal(found[real], ARRAYS["padmask.mask"].astype(bool)[real])

    def test_chunks_of_queries(self, monkeypatch):
        monkeypatch.setattr(attention_module, "_QUERIES_PER_CHUNK", 3)
        rng = np.random.default_rng(0)
        query = jnp.asarray(rng.normal(size=(2, 7, 4, 8)), jnp.float32)
        key, value = (jnp.asarray(rng.normal(size=(2, 7, 2, 8)), jnp.float32) for _ in range(2))
        copies = Copies(
            block=jnp.asarray([[0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0, 1]]),
            noisy=jnp.arange(7)[None] >= jnp.asarray([[4], [4]]),
            real=jnp.asarray([[False] + [True] * 6, [True] * 7]),
        )
        dense = copies.visible(copies.block, copies.noisy)

        def chunked(q, k, v):
            return jnp.sum(jnp.sin(attention_in_copies(q, k, v, copies)))

        def plain(q, k, v):
            return jnp.sum(jnp.sin(attention(q, k, v, dense)))

        found, expected = (
            jax.value_and_grad(f, argnums=(0, 1, 2))(query, key, value) for f in (chunked, plain)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
        )

    def test_no_square_array(self):
        size = 700
        shape = jax.ShapeDtypeStruct((1, size, 2, 8), jnp.float32)
        flags = jax.ShapeDtypeStruct((1, size), bool)
        copies = Copies(jax.ShapeDtypeStruct((1, size), jnp.int32), flags, flags)

        def loss(q, k, v, copies):
            return jnp.sum(attention_in_copies(q, k, v, copies))

        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(shape, shape, shape, copies)
        squares = [
            variable.aval.shape
            for equation in _equations(jaxpr.jaxpr)
            for variable in equation.outvars
            if sum(side >= size for side in variable.aval.shape) > 1
        ]
        assert squares == []


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


class TestGolden:
    """The public code's numbers; its blocks begin with the response."""

    @staticmethod
    def arrays(name: str) -> dict[str, np.ndarray]:
        return {
            k.removeprefix(f"{name}."): v for k, v in ARRAYS.items() if k.startswith(f"{name}.")
        }

    def prepared(self, name: str, model, **settings):
        case, data = CASES[name], self.arrays(name)
        # The value case was recorded on the rows of the first loss.
        ids = data.get("input_ids", ARRAYS["policy_loss_outcome.input_ids"])
        steps = data.get("step_map", ARRAYS["policy_loss_outcome.step_map"])
        prompt = case["prompt_length"]
        mask = ids[:, :prompt] != CASES["policy_loss_outcome"]["pad_id"]
        responses = Responses(
            Prompts(jnp.asarray(ids[:, :prompt]), jnp.asarray(mask)),
            jnp.asarray(ids[:, prompt:]),
            jnp.asarray(steps),
        )
        learner = TraceLearner(
            denoiser=model[0],
            optimizer=optax.sgd(1.0),
            surrogate=Trace(shrink=case.get("shrink", 2)),
            blocks=FromResponse(case["block_size"]),
            normaliser="length",
            chunk_size=3,
            **settings,
        )
        row_of = [
            int(np.flatnonzero((ids == row[: ids.shape[1]]).all(axis=1))[0])
            for row in data["extended_input_ids"]
        ]

        def merged(rows: np.ndarray) -> np.ndarray:
            """Per-row numbers [rows, P + L] as per-response ones [B, L]."""
            out = np.zeros(steps.shape, np.float32)
            for row, b in enumerate(row_of):
                out[b] += np.where(data["p_mask"][row], rows[row], 0.0)[prompt:]
            return out

        return case, data, learner, responses, merged, row_of

    @pytest.mark.parametrize("name", ["policy_loss_outcome", "policy_loss_token_adv"])
    @pytest.mark.default_cases("policy_loss_token_adv")
    def test_policy_loss_and_gradient(self, model, name):
        case, data, plain, responses, merged, row_of = self.prepared(name, model)
        kept, key, params = jnp.ones(len(responses.tokens), bool), jax.random.key(0), model[1]
        found = gradients.log_probs(plain, params, responses, kept, key)[0]
        np.testing.assert_allclose(found, merged(data["logp"]), atol=1e-4)

        if data["advantage"].ndim == 1:
            rows = {b: data["advantage"][row] for row, b in enumerate(row_of)}
            advantages = np.asarray([[rows[b]] * found.shape[1] for b in range(len(found))])
        else:
            advantages = merged(data["advantage"])
        for number, setting in enumerate(case["settings"]):
            learner = dataclasses.replace(
                plain, clip=setting["eps"], beta=setting["beta"], kl="k3" if setting["k3"] else "k1"
            )
            batch = StateBatch(learner, responses, learner.describe(responses), kept, key)
            loss = TraceLoss(
                learner=learner,
                batch=batch,
                index=0,
                advantages=jnp.asarray(advantages, jnp.float32),
                old=jnp.asarray(merged(data["old_logp"]))[None],
            )
            cells = batch.minibatches(0)
            grads, sums = jax.jit(loss.gradient)(params, cells, cells.first)
            assert float(sums.loss) == pytest.approx(setting["loss"], abs=5e-6)
            norm = float(optax.tree.norm(grads))
            assert norm == pytest.approx(setting["global_grad_norm"], rel=2e-4)
            if number == len(case["settings"]) - 1:
                np.testing.assert_allclose(
                    grads["final_norm"]["scale"], data["grad_final_norm"], rtol=2e-3, atol=2e-4
                )

    def test_values(self, model):
        _, data, learner, responses, merged, _ = self.prepared("value", model)
        denoiser, params = model
        value = {"backbone": params, "head": jnp.asarray(data["head_weight"][0])}
        canvas = learner.describe(responses)
        found = np.zeros(responses.tokens.shape, np.float32)
        rows = jnp.arange(len(found))
        for n in range(learner.num_states(found.shape[1])):
            states = learner.surrogate.states(canvas, None, jnp.full(len(rows), n), rows)
            values = token_values(
                denoiser, value, responses.prompts, responses.tokens, states, learner.blocks
            )
            found += np.where(states.trained, values, 0.0)
        np.testing.assert_allclose(found, merged(data["values"]), atol=1e-4)


@pytest.mark.parametrize(
    ("denoiser", "blocks", "message"),
    [
        (DENOISER, None, "family 'sdar' is block-causal; give blocks"),
        (
            Denoiser(dataclasses.replace(CONFIG, attention_block=None)),
            AttentionBlocks(4),
            r"blocks=AttentionBlocks\(length=4\) .*; give None",
        ),
    ],
)
def test_blocks_must_fit_the_denoiser(denoiser, blocks, message):
    with pytest.raises(ValueError, match=message):
        TraceLearner(denoiser=denoiser, optimizer=optax.sgd(1.0), blocks=blocks)
