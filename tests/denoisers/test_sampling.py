"""Top-k, top-p and confidences of filtered draws, against recorded tables."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny
from jax_unmask import denoisers
from jax_unmask.denoisers import head
from jax_unmask.denoisers.sampling import Sampling, filtered

SAMPLERS = pathlib.Path(__file__).parents[1] / "fixtures" / "samplers"
CONFIG = tiny.denoiser_config(vocab_size=38, hidden_size=38, mask_token_id=37, eos_token_id=0)
DENOISER = denoisers.Denoiser(CONFIG)
# An identity as the output projection: hidden states are logits.
PARAMS = {"head": jnp.eye(38)}
SCORE = jax.jit(
    functools.partial(head.score_candidates, DENOISER, PARAMS),
    static_argnames=("sampling", "temperature", "top_k", "entropy", "vocab_chunk"),
)


@pytest.fixture(scope="module")
def tables():
    return load_file(SAMPLERS / "cases.safetensors")


def score(logits, sampling, temperature=0.0, seed=0, **more):
    """Scores of one row of positions [L, V], of all tokens or of all but the mask token."""
    mask_token = [(0, 0), (0, CONFIG.vocab_size - logits.shape[1])]
    logits = jnp.pad(jnp.asarray(logits), mask_token, constant_values=-1e9)
    keys = jax.random.split(jax.random.key(seed), 1)
    out = SCORE(logits[None], keys, sampling=sampling, temperature=temperature, **more)
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), out)


class TestRecordedFilters:
    @pytest.mark.parametrize("index", range(5))
    def test_sdar(self, tables, index):
        cases = json.loads((SAMPLERS / "meta.json").read_text())["cases"]
        combo = next(c for c in cases if c["name"] == "filters.sdar")["combos"][index]
        logits = tables["filters.logits"] / combo.pop("temperature")
        probs = jax.nn.softmax(filtered(jnp.asarray(logits), Sampling(**combo)))
        np.testing.assert_allclose(probs, tables[f"filters.sdar_probs{index}"], atol=1e-6)

    def test_dream_top_p(self, tables):
        sampling = Sampling(top_p=0.85, top_p_first=True, filtered_confidence=True)
        out = score(tables["filters.logits"], sampling)
        np.testing.assert_allclose(out.confidence, tables["filters.dream_topp_confidence"], 1e-5)
        np.testing.assert_array_equal(out.candidate, tables["filters.dream_topp_confidence_token"])

    def test_dream_top_k_entropy(self, tables):
        sampling = Sampling(top_k=7, filtered_confidence=True)
        out = score(tables["filters.logits"], sampling, entropy=True)
        np.testing.assert_allclose(-out.entropy, tables["filters.dream_topk_neg_entropy"], 1e-5)

    def test_dream_without_filters(self, tables):
        out = score(tables["filters.logits"], Sampling(), top_k=2, entropy=True)
        np.testing.assert_allclose(out.confidence, tables["filters.dream_confidence"], 1e-5)
        np.testing.assert_allclose(-out.entropy, tables["filters.dream_neg_entropy"], 1e-5)
        margin = out.top_probs[:, 0] - out.top_probs[:, 1]
        np.testing.assert_allclose(margin, tables["filters.dream_margin"], 1e-4)


class TestDraws:
    def test_stay_inside_and_follow_the_filtered_distribution(self):
        logits = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05] + 32 * [1e-6]))
        out = score(
            jnp.broadcast_to(logits, (4000, 37)),
            Sampling(top_k=3, top_p=0.9, filtered_confidence=True),
            temperature=0.5,
        )
        # At temperature 1/2 probabilities are squared; the third is beyond 90 % of the first two.
        weights = np.array([0.16, 0.09, 0.0225])
        assert weights[:2].sum() / weights.sum() > 0.9
        expected = weights[:2] / weights[:2].sum()
        counts = np.bincount(out.candidate, minlength=37)
        assert counts[2:].sum() == 0
        np.testing.assert_allclose(counts[:2] / 4000, expected, atol=0.03)
        np.testing.assert_allclose(out.confidence, expected[out.candidate], rtol=1e-4)

    def test_own_confidence_where_it_is_asked_for(self):
        logits = jax.random.normal(jax.random.key(0), (50, 37))
        out = score(logits, Sampling(top_k=4), temperature=1.5)
        probs = np.asarray(jax.nn.softmax(logits))
        np.testing.assert_allclose(out.confidence, probs[np.arange(50), out.candidate], rtol=1e-4)

    @pytest.mark.parametrize("filtered_confidence", [True, False])
    def test_never_the_mask_token(self, filtered_confidence):
        logits = jax.random.normal(jax.random.key(0), (9, 38)).at[:, 37].set(9.0)
        sampling = Sampling(top_k=1, filtered_confidence=filtered_confidence)
        out = score(logits, sampling, temperature=0.6)
        np.testing.assert_array_equal(out.candidate, logits[:, :37].argmax(-1))
        assert ((out.confidence > 0) & (out.confidence < 0.1)).all()

    @pytest.mark.parametrize("chunk", [1, 10])
    def test_slices_change_nothing(self, chunk):
        logits = jax.random.normal(jax.random.key(0), (13, 37))
        sampling = Sampling(top_p=0.8, filtered_confidence=True)
        settings = {"temperature": 0.9, "top_k": 3, "entropy": True}
        whole = score(logits, sampling, **settings)
        sliced = score(logits, sampling, **settings, vocab_chunk=chunk)
        np.testing.assert_array_equal(sliced.candidate, whole.candidate)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sliced, whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, r"top_p = 0\.0"),
        ({"top_p": 1.5}, r"top_p = 1\.5"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Sampling(), **settings)
