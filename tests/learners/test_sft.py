"""Masked-diffusion SFT: the loss against numpy, what counts, and that a model learns by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jax_unmask.denoisers import Denoiser, init_params
from jax_unmask.denoisers.attention import Copies
from jax_unmask.learners.optim import OptimizerSettings
from jax_unmask.learners.sft import (
    Corruption,
    Masking,
    SftBatch,
    SftLearner,
    corrupt,
    masked_cross_entropy,
)
from jax_unmask.rollout.trajectory import Prompts

CONFIG = tiny.denoiser_config(intermediate_size=32)
DENOISER = Denoiser(CONFIG)
ROWS, PROMPT, LENGTH = 4, 3, 6


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


def make_batch(seed: int = 0, rows: int = ROWS) -> SftBatch:
    """Responses that repeat the prompt's last token, left-padded prompts of 1 to 3 tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 10, (rows, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) >= rng.integers(0, PROMPT, (rows, 1))
    targets = np.full((rows, LENGTH), CONFIG.eos_token_id, np.int32)
    targets[:, :3] = tokens[:, -1:]
    return jax.tree.map(jnp.asarray, SftBatch(prompts=Prompts(tokens, mask), targets=targets))


@pytest.fixture(scope="module")
def corruption():
    masking = Masking(suffix_fraction=0.5, suffix_block_length=3, max_weight=5.0)
    return corrupt(masking, jax.random.key(5), ROWS, LENGTH)


def test_loss_against_numpy(params, corruption):
    batch = make_batch()
    loss, accuracy = masked_cross_entropy(DENOISER, params, batch, corruption)

    masked = np.asarray(corruption.masked)
    targets = np.asarray(batch.targets)
    canvas = np.concatenate([batch.prompts.tokens, np.where(masked, 11, targets)], axis=1)
    real = np.concatenate([batch.prompts.mask, np.ones_like(masked)], axis=1)
    logits = jax.jit(DENOISER.apply)({"params": params}, canvas, attention_mask=real)
    logits = np.asarray(logits, np.float64)[:, PROMPT:]
    total, right = 0.0, []
    for b in range(ROWS):
        for k in range(LENGTH):
            if not masked[b, k]:
                continue
            z = logits[b, k]
            log_p = z[targets[b, k]] - np.log(np.exp(z).sum())
            total -= float(corruption.weight[b, k]) * log_p
            right.append(z.argmax() == targets[b, k])
    assert float(loss) == pytest.approx(total / (ROWS * LENGTH), rel=1e-5)
    assert float(accuracy) == pytest.approx(np.mean(right))


@functools.partial(jax.jit, static_argnums=3)
def gradient(params, batch, corruption, chunk=0):
    return jax.value_and_grad(
        lambda p: masked_cross_entropy(DENOISER, p, batch, corruption, chunk), has_aux=True
    )(params)


@pytest.mark.parametrize("chunk", [1, 5])
def test_vocabulary_chunks_do_not_matter(params, corruption, chunk):
    whole, parts = (gradient(params, make_batch(), corruption, n) for n in (0, chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)


def test_hidden_targets_cannot_leak(params, corruption):
    # Changing a target changes the loss through its label alone, so with the same wrong label for
    # both, two batches that differ only where tokens are hidden have the same logits.
    batch = make_batch()
    flat = Corruption(corruption.masked, jnp.zeros_like(corruption.weight))
    other = batch.replace(targets=jnp.where(corruption.masked, 0, batch.targets))

    def grads(batch, corruption):
        return gradient(params, batch, corruption)[1]

    assert not any(np.any(g) for g in jax.tree.leaves(grads(batch, flat)))
    # Weight only one position that has the same label in both batches.
    same = corruption.masked & (batch.targets == other.targets)
    weighted = Corruption(corruption.masked, jnp.where(same | ~corruption.masked, 1.0, 0.0))
    a, b = grads(batch, weighted), grads(other, weighted)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_causal_rows_train_next_tokens_and_leave_the_other_rows_alone():
    config = tiny.denoiser_config(family="dream", logits_shift=True, intermediate_size=32)
    denoiser, params = Denoiser(config), init_params(config, jax.random.key(0))
    batch, masking = make_batch(), Masking(causal_fraction=0.5)
    drawn = corrupt(masking, jax.random.key(5), ROWS, LENGTH)
    others = corrupt(Masking(), jax.random.key(5), ROWS, LENGTH)
    rows = np.flatnonzero(drawn.causal)
    assert len(rows) == ROWS // 2 and not drawn.masked[rows].any()
    for name in ("masked", "weight"):
        one, other = (np.delete(getattr(each, name), rows, 0) for each in (drawn, others))
        np.testing.assert_array_equal(one, other)

    total = 0.0
    for b in rows:
        seen = batch.prompts.tokens[b][batch.prompts.mask[b]]
        text = jnp.concatenate([seen, batch.targets[b]])
        block = jnp.maximum(jnp.arange(len(text)) - len(seen) + 1, 0)[None]
        flags = jnp.zeros(block.shape, bool)
        for k in range(LENGTH):
            # What is behind the token, and the token itself, have no influence.
            shown = jnp.where(jnp.arange(len(text)) < len(seen) + k, text, 0)
            hidden = denoiser.apply(
                {"params": params},
                shown[None],
                positions=jnp.arange(len(text))[None],
                copies=Copies(block=block, noisy=flags, real=~flags),
                method="hidden",
            )[0, len(seen) + k]
            logits = denoiser.apply({"params": params}, hidden, method="logits")
            total -= float(jax.nn.log_softmax(logits)[batch.targets[b, k]])
    weight = others.weight.at[rows].set(0.0)
    rest, _ = masked_cross_entropy(denoiser, params, batch, Corruption(others.masked, weight))
    loss, _ = masked_cross_entropy(denoiser, params, batch, drawn)
    assert float(loss) == pytest.approx(float(rest) + total / (ROWS * LENGTH), rel=1e-5)


def test_causal_rows_leave_mask_ratios_spread():
    drawn = corrupt(Masking(causal_fraction=0.5, max_weight=None), jax.random.key(2), 8, 4096)
    ratios = np.sort(np.asarray(drawn.masked.mean(axis=1))[~np.asarray(drawn.causal)])
    np.testing.assert_allclose(np.diff(ratios), 1 / 4, atol=0.05)


def make_learner(**settings) -> SftLearner:
    optimizer = OptimizerSettings(3e-3, 5, weight_decay=0.0, grad_clip=1.0).build(400)
    return SftLearner(**{"denoiser": DENOISER, "optimizer": optimizer, **settings})


@pytest.fixture(scope="module")
def trained(params):
    """A learner, and its state after some steps."""
    learner = make_learner(ema_decay=0.9)
    state, losses = learner.init(params, jax.random.key(1)), []
    compiled = SftLearner.step._cache_size()
    for step in range(40):
        state, metrics = learner.step(state, make_batch(step, rows=32))
        losses.append(float(metrics["loss"]))
    assert SftLearner.step._cache_size() == compiled + 1
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))  # Not donated.
    return learner, state


@pytest.mark.thorough
def test_average_follows_the_parameters(trained):
    learner, state = trained
    difference = jax.tree.map(
        lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)), state.params, state.ema
    )
    assert max(jax.tree.leaves(difference)) > 0
    # One more step moves it to the new parameters; early on faster than `ema_decay` says.
    old_ema = jax.tree.map(np.asarray, state.ema)
    copy = jax.tree.map(jnp.copy, state)
    new, _ = learner.step(copy, make_batch(7, rows=32))
    expected = jax.tree.map(lambda e, p: 0.82 * e + 0.18 * p, old_ema, new.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.ema, expected
    )


def test_a_step_is_a_function_of_state_and_batch(trained):
    learner, state = trained
    batch = make_batch(9, rows=32)
    first, second = (learner.step(jax.tree.map(jnp.copy, state), batch) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first[0].params, second[0].params)
    assert float(first[1]["loss"]) == float(second[1]["loss"])
    # The next step draws other masks.
    later = jax.tree.map(jnp.copy, state).replace(step=state.step + 1)
    _, metrics = learner.step(later, batch)
    assert float(metrics["masked_fraction"]) != float(first[1]["masked_fraction"])
