"""Candidate scores: against plain NumPy, in slices, and against LLaDA's own sampler."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from safetensors.numpy import load_file
from scipy.special import log_softmax, softmax

import tiny
from jax_unmask import denoisers
from jax_unmask.denoisers import head, tpu_head

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
CONFIG = tiny.denoiser_config(vocab_size=37, mask_token_id=2, eos_token_id=1, pad_token_id=1)
MASK = CONFIG.mask_token_id
SCORE = jax.jit(
    head.score_candidates,
    static_argnames=(*("denoiser", "top_k", "entropy", "temperature", "vocab_chunk"),),
)


def scores_of(logits: np.ndarray, keys=None, tie: bool = False, **options) -> head.Scores:
    """Scores a table of logits [B, L, V]: its rows become a denoiser's output projection."""
    config = dataclasses.replace(
        CONFIG, vocab_size=logits.shape[-1], hidden_size=logits.shape[-1], tie_embeddings=tie
    )
    params = {"embedding" if tie else "head": jnp.eye(logits.shape[-1])}
    params = {"embedding": params["head"], **params} if not tie else params
    keys = jax.random.split(jax.random.key(0), logits.shape[0]) if keys is None else keys
    return SCORE(denoisers.Denoiser(config), params, jnp.asarray(logits), keys, **options)


def random_logits(seed: int, *shape: int, scale: float = 2.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same(found: head.Scores, expected: head.Scores) -> None:
    np.testing.assert_array_equal(found.candidate, expected.candidate)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=2e-6)
    np.testing.assert_allclose(found.top_probs, expected.top_probs, rtol=2e-6)
    np.testing.assert_allclose(found.entropy, expected.entropy, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("vocab_chunk", [None, 8], ids=["whole", "sliced"])
def test_against_numpy(vocab_chunk):
    logits = random_logits(0, 2, 5, 37)
    logits[..., MASK] = -20.0
    found = scores_of(logits, top_k=3, entropy=True, vocab_chunk=vocab_chunk)
    probs = softmax(logits.astype(np.float64), axis=-1)
    np.testing.assert_array_equal(found.candidate, logits.argmax(-1))
    np.testing.assert_allclose(found.confidence, probs.max(-1), rtol=1e-5)
    np.testing.assert_allclose(found.top_probs, -np.sort(-probs, axis=-1)[..., :3], rtol=1e-5)
    entropy = -(probs * log_softmax(logits.astype(np.float64), axis=-1)).sum(-1)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_of_equal_logits_each_counts(top_k):
    logits = np.array(
        [[[1.0, 3.0, 3.0, 2.0], [3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], np.float32
    )
    found = scores_of(logits, top_k=top_k)
    expected = -np.sort(-softmax(logits, axis=-1), axis=-1)[..., :top_k]
    np.testing.assert_allclose(found.top_probs, expected, rtol=1e-5)


@pytest.mark.parametrize(("tie", "temperature"), [(False, 0.7), (True, 0.0)])
@pytest.mark.parametrize("chunk", [7, 64])
def test_slices_change_nothing(chunk, tie, temperature):
    logits = random_logits(1, 3, 4, 37, scale=4.0)
    options = {"top_k": 5, "entropy": True, "temperature": temperature, "tie": tie}
    assert_same(scores_of(logits, vocab_chunk=chunk, **options), scores_of(logits, **options))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(3, 1, 1), (11, 4, 3), (23, 24, 2)]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 60.0]),
    seed=st.integers(0, 2**16),
)
def test_slices_change_nothing_whatever_the_values(shape, scale, seed):
    vocab, chunk, top_k = shape
    # Rounding makes ties, among them ties across slices.
    logits = np.round(random_logits(seed, 1, 3, vocab, scale=scale))
    options = {"top_k": top_k, "entropy": True}
    assert_same(scores_of(logits, vocab_chunk=chunk, **options), scores_of(logits, **options))


@pytest.mark.parametrize("chunk", [None, 3])
def test_mask_token_is_no_candidate_but_keeps_its_probability(chunk):
    logits = np.zeros((1, 2, 5), np.float32)
    logits[0, :, MASK], logits[0, :, 4] = 5.0, 3.0
    probs = softmax(logits[0, 0])
    found = scores_of(logits, top_k=2, vocab_chunk=chunk)
    np.testing.assert_array_equal(found.candidate, 4)
    np.testing.assert_allclose(found.confidence, probs[4], rtol=1e-5)
    np.testing.assert_allclose(found.top_probs[0, 0], [probs[MASK], probs[4]], rtol=1e-5)


@pytest.mark.parametrize("chunk", [None, 2])
def test_near_ties_are_settled_in_float32_and_ties_by_order(chunk):
    """Logits that differ by less than bfloat16 tells apart, of weights and states that are that."""
    table = jnp.asarray([[1, 0], [0, 0], [0, 0], [1, 1], [1, 1], [1, 0.5]], jnp.bfloat16)
    hidden = jnp.asarray([[[1, 2**-12]]], jnp.bfloat16)
    config = dataclasses.replace(CONFIG, vocab_size=6, hidden_size=2, dtype=jnp.bfloat16)
    keys, params = jax.random.split(jax.random.key(0), 1), {"head": table}
    found = SCORE(denoisers.Denoiser(config), params, hidden, keys, vocab_chunk=chunk)
    assert found.candidate.item() == 3
    logits = np.asarray(table, np.float64) @ [1, 2**-12]
    np.testing.assert_allclose(found.confidence.item(), softmax(logits)[3], rtol=1e-5)


@pytest.mark.parametrize(
    ("positions", "top_k", "entropy"),
    [(21, 2, True), pytest.param(7, 1, False, marks=pytest.mark.slow)],
)
def test_the_tpu_kernel_gives_the_same_scores(positions, top_k, entropy, monkeypatch):
    """Interpreted, in several blocks and tiles that end after the arrays; memory holds NaN."""
    rng = np.random.default_rng(0)
    config = dataclasses.replace(
        CONFIG, vocab_size=600, hidden_size=128, dtype=jnp.bfloat16, mask_token_id=530
    )
    table = jnp.asarray(rng.normal(size=(600, 128)) * 0.3, jnp.bfloat16)
    # Ties in one lane, across lanes and tiles; the mask token is the most probable.
    table = table.at[jnp.asarray([5, 133, 400])].set(table[5]).at[530].set(1.5 * table[5])
    hidden = jnp.asarray(rng.normal(size=(2, positions, 128)), jnp.bfloat16)
    hidden = hidden.at[:, :2].set(table[5])
    denoiser, params = denoisers.Denoiser(config), {"head": table}
    options = {"top_k": top_k, "entropy": entropy, "vocab_chunk": 200}
    keys = jax.random.split(jax.random.key(0), 2)
    expected = SCORE(denoiser, params, hidden, keys, **options)
    score = jax.jit(functools.partial(head.score_candidates, denoiser, **options))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(tpu_head, "_POSITIONS", 32)
    monkeypatch.setattr(tpu_head, "_ROWS", 16)
    monkeypatch.setattr(tpu_head, "_TOKENS", 256)
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        found = score(params, hidden, keys)
    assert (np.asarray(found.candidate)[:, :2] == 5).all()
    np.testing.assert_array_equal(found.candidate, expected.candidate)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=3e-6)
    np.testing.assert_allclose(found.top_probs, expected.top_probs, rtol=3e-6)
    if entropy:
        np.testing.assert_allclose(found.entropy, expected.entropy, rtol=1e-5)


def test_certain_position_has_no_entropy():
    logits = np.full((1, 1, 6), -80.0, np.float32)
    logits[..., 3] = 80.0
    found = scores_of(logits, entropy=True)
    assert found.entropy.item() == 0.0
    assert found.confidence.item() == 1.0


class TestTemperature:
    def test_draws_follow_the_distribution(self):
        temperature, rows = 0.7, 4000
        logits = random_logits(3, 1, 1, 6, scale=1.0).repeat(rows, axis=0)
        keys = jax.random.split(jax.random.key(1), rows)
        found = scores_of(logits, keys, temperature=temperature)
        weights = softmax(logits[0, 0] / temperature)
        weights[MASK] = 0.0
        expected = weights / weights.sum()
        counts = np.bincount(found.candidate.ravel(), minlength=6)
        error = np.sqrt(expected * (1 - expected) / rows)
        assert (np.abs(counts / rows - expected) <= 4.5 * error).all()

    def test_a_row_depends_on_its_own_key(self):
        logits = random_logits(5, 3, 8, 37)
        keys = jax.random.split(jax.random.key(2), 3)
        together = scores_of(logits, keys, temperature=1.0)
        alone = scores_of(logits[1:2], keys[1:2], temperature=1.0)
        np.testing.assert_array_equal(together.candidate[1], alone.candidate[0])

    def test_positions_draw_their_own_noise(self):
        logits = random_logits(6, 1, 1, 37, scale=0.1).repeat(24, axis=1)
        found = scores_of(logits, temperature=1.0)
        assert len(np.unique(found.candidate)) > 6

    def test_against_llada_with_its_noise(self, monkeypatch):
        # "llada_gumbel": LLaDA's generate, two tokens a step by confidence, uniforms given.
        cases = load_file(FIXTURES / "samplers" / "cases.safetensors")
        denoiser, params = denoisers.from_pretrained(FIXTURES / "llada")
        prompt, uniform = cases["llada_gumbel.prompt"], cases["llada_gumbel.uniform"]
        start = prompt.shape[1]
        mask_id = denoiser.config.mask_token_id
        tokens = np.pad(prompt, ((0, 0), (0, 8)), constant_values=mask_id)
        step_map = np.full_like(tokens, -1)
        keys = jax.random.split(jax.random.key(0), 1)
        hidden_of = jax.jit(functools.partial(denoiser.apply, method="hidden"))
        for step in range(4):
            noise = -np.log(-np.log(uniform[step][:, start:])).astype(np.float32)
            monkeypatch.setattr(
                head, "gumbel_noise", lambda keys, ids, length, n=noise: n[..., ids]
            )
            hidden = hidden_of({"params": params}, tokens)[:, start:]
            found = head.score_candidates(denoiser, params, hidden, keys, temperature=0.8)
            confidence = np.where(tokens[:, start:] == mask_id, found.confidence, -np.inf)
            chosen = start + np.argsort(-confidence[0])[:2]
            tokens[0, chosen] = np.asarray(found.candidate)[0, chosen - start]
            step_map[0, chosen] = step
        np.testing.assert_array_equal(tokens, cases["llada_gumbel.sequences"])
        np.testing.assert_array_equal(step_map, cases["llada_gumbel.step_map"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0 .* 5"),
        ({"top_k": 6}, "top_k=6 .* 5"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": -1.0}, r"temperature=-1.0"),
        ({"vocab_chunk": 0}, "vocab_chunk=0 "),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        scores_of(random_logits(7, 1, 2, 5), **options)


def test_sliced_scores_keep_one_slice_of_logits():
    vocab, chunk = 4096, 256
    config = dataclasses.replace(CONFIG, vocab_size=vocab)
    denoiser = denoisers.Denoiser(config)
    params = tiny.random_params(config)
    hidden = jnp.zeros((8, 32, CONFIG.hidden_size))
    keys = jax.random.split(jax.random.key(0), 8)

    def temporary_bytes(vocab_chunk):
        score = lambda p, h, k: head.score_candidates(
            denoiser, p, h, k, entropy=True, vocab_chunk=vocab_chunk
        )
        compiled = jax.jit(score).lower(params, hidden, keys).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    all_logits = 8 * 32 * vocab * 4
    assert temporary_bytes(None) >= all_logits
    assert temporary_bytes(chunk) < all_logits / 4
