"""Supervised training in chosen states: which states, and that the step is that of likelihood."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from jax_unmask import recipes
from jax_unmask.denoisers import Denoiser, init_params
from jax_unmask.learners.state_sft import StateLearner
from jax_unmask.learners.states import Responses
from jax_unmask.learners.surrogates import Autoregressive, Canvas, SemiAutoregressive
from jax_unmask.recipes import state_sft
from jax_unmask.rollout import Prompts
from jax_unmask.settings import ConfigError
from jax_unmask.tasks.data import Batch

CONFIG = tiny.denoiser_config(family="dream", logits_shift=True)


def test_semi_autoregressive_states():
    trainable = jnp.arange(8) < jnp.asarray([[8], [6]])
    zeros = jnp.zeros((2, 8), jnp.int32)
    canvas = Canvas(trainable, zeros, zeros, zeros, jnp.ones((2, 3), bool))
    surrogate = SemiAutoregressive(block_length=3, mask_low=0.3, mask_high=0.9)
    assert surrogate.num_states(8) == 3
    seen = np.zeros((2, 8), bool)
    for seed in range(30):
        index, row = jnp.asarray([0, 1, 2] * 2), jnp.asarray([0, 0, 0, 1, 1, 1])
        states = surrogate.states(canvas, jax.random.key(seed), index, row)
        for k, b, masked, trained in zip(index, row, states.masked, states.trained, strict=True):
            first, behind = int(k) * 3, min(int(k) * 3 + 3, 8)
            assert not masked[:first].any()
            assert masked[behind:].all()
            # Of the block itself: what is trained, and what is not trainable.
            np.testing.assert_array_equal(
                masked[first:behind], (trained | ~trainable[b])[first:behind]
            )
            assert not trained[:first].any()
            assert not trained[behind:].any()
            seen[b] |= np.asarray(trained)
    np.testing.assert_array_equal(seen, trainable)


def test_block_method_trains_a_denoiser_with_full_attention_block_causally():
    """In blocks of 1 each token is predicted from its mask and the text before it."""
    full = tiny.denoiser_config()
    config = dataclasses.replace(
        state_sft.StateSftSettings(),
        learner=state_sft.StateMethod(
            method="block", block_length=1, mask_low=1.0, mask_high=1.0, chunk_size=2
        ),
    )
    learner = state_sft.build_learner(config, Denoiser(full))
    rng = np.random.default_rng(0)
    prompts = Prompts(jnp.asarray(rng.integers(0, 10, (2, 3)), jnp.int32), jnp.ones((2, 3), bool))
    tokens = jnp.asarray(rng.integers(0, 10, (2, 5)), jnp.int32)
    params = init_params(full, jax.random.key(0))
    state = learner.init(params, jax.random.key(1))
    _, metrics = learner.step(state, Responses(prompts, tokens, jnp.zeros((2, 5), jnp.int32)))

    causal = Denoiser(dataclasses.replace(full, attention_block=1))
    total = 0.0
    for b in range(2):
        for i in range(5):
            seen = np.concatenate([prompts.tokens[b], tokens[b, :i], [full.mask_token_id]])
            logits = causal.apply({"params": params}, seen[None])[0, -1]
            total -= float(jax.nn.log_softmax(logits)[tokens[b, i]])
    assert float(metrics["loss"]) == pytest.approx(total / 10, abs=1e-5)
    with pytest.raises(ConfigError, match=r"config\.learner\.method = 'block'.*'ar'"):
        state_sft.build_learner(config, Denoiser(CONFIG))


def test_training_says_that_blocks_of_full_attention_are_a_cold_start(caplog, tmp_path):
    settings = recipes.defaults("state_sft")
    learner = dataclasses.replace(settings.learner, method="block", block_length=1)
    state_sft.StateSft(dataclasses.replace(settings, learner=learner), tmp_path)
    assert "learner.method = 'block'" in caplog.text


@pytest.mark.thorough
def test_autoregressive_loss_is_that_of_every_prefix():
    rng = np.random.default_rng(0)
    mask = np.arange(4) >= np.asarray([[0], [2]])
    prompts = Prompts(jnp.asarray(rng.integers(0, 10, (2, 4)), jnp.int32), jnp.asarray(mask))
    tokens = jnp.asarray(rng.integers(0, 10, (2, 5)), jnp.int32)
    responses = Responses(prompts, tokens, jnp.zeros((2, 5), jnp.int32))
    causal = dataclasses.replace(CONFIG, attention_block=1)
    params = init_params(CONFIG, jax.random.key(0))
    learner = StateLearner(
        denoiser=Denoiser(causal),
        optimizer=optax.sgd(0.1),
        surrogate=Autoregressive(),
        chunk_size=2,
    )
    state = learner.init(params, jax.random.key(1))

    forward = jax.jit(Denoiser(causal).apply)

    def loss(params):
        """Mean -log p of each token given the text before it, which is all that the model sees."""
        total = 0.0
        for b in range(2):
            start = int(mask[b].sum())
            for i in range(5):
                seen = np.zeros((1, 9), np.int32)  # Nothing sees what is behind it.
                seen[0, : start + i] = [*prompts.tokens[b][mask[b]], *tokens[b, :i]]
                logits = forward({"params": params}, seen)[0, start + i]
                total -= jax.nn.log_softmax(logits)[tokens[b, i]]
        return total / 10

    new, metrics = learner.step(state, responses)
    expected, slope = jax.value_and_grad(loss)(params)
    assert float(metrics["loss"]) == pytest.approx(float(expected), abs=1e-5)
    jax.tree.map(
        lambda after, before, g: np.testing.assert_allclose(after, before - 0.1 * g, atol=1e-6),
        new.params,
        params,
        slope,
    )


def test_what_a_trace_writes_first_depends_on_the_given_tokens_or_on_the_denoiser(tmp_path):
    settings = recipes.defaults("state_sft")
    settings = dataclasses.replace(
        settings,
        task=dataclasses.replace(settings.task, name="arithmetic", prompt_length=17),
        model=dataclasses.replace(settings.model, path="arithmetic"),
        data=dataclasses.replace(settings.data, gen_length=8, batch_size=2),
    )
    tokens = np.stack([np.arange(8), np.arange(8)[::-1]]).astype(np.int32)
    prompts = Prompts(np.ones((2, 17), np.int32), np.ones((2, 17), bool))
    batch = Batch([], prompts, np.full(2, 17), tokens, np.ones(2, bool))
    first = {}
    for order in ("targets", "margin"):
        learner = dataclasses.replace(settings.learner, method="trace", order=order)
        recipe = state_sft.StateSft(dataclasses.replace(settings, learner=learner), tmp_path)
        first[order] = np.asarray(recipe._steps(batch)) == 0
    np.testing.assert_array_equal(first["margin"][0], first["margin"][1])
    assert (first["targets"][0] != first["targets"][1]).any()
