"""The transformer against golden logits, and the properties that a denoiser must have."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny
from jax_unmask import denoisers
from jax_unmask.denoisers.attention import attention
from jax_unmask.denoisers.transformer import DenoiserBlock, forward, rotary_table

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "llada"

TINY = tiny.denoiser_config(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    max_length=64,
    mask_token_id=2,
    eos_token_id=1,
    pad_token_id=1,
)


@functools.partial(jax.jit, static_argnames=("denoiser", "method"))
def run(denoiser, params, *args, method=None):
    return denoiser.apply({"params": params}, *args, method=method)


@pytest.fixture(scope="module")
def golden():
    return load_file(FIXTURE / "cases.safetensors")


@pytest.fixture(scope="module")
def pretrained():
    return denoisers.from_pretrained(FIXTURE)


@pytest.fixture(scope="module")
def model():
    return denoisers.Denoiser(TINY), tiny.random_params(TINY)


def random_tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, TINY.vocab_size, shape, dtype=np.int32)


class TestGolden:
    @pytest.mark.parametrize("case", ["plain0", "plain1", "plain2"])
    def test_logits(self, pretrained, golden, case):
        denoiser, params = pretrained
        logits = run(denoiser, params, golden[f"{case}.input_ids"])
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, golden[f"{case}.logits"], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("case", ["mask_left", "mask_right"])
    @pytest.mark.parametrize("arange", [True, False], ids=["arange", "default"])
    def test_padded_logits(self, pretrained, golden, case, arange):
        # The reference counts positions from the first pad; rotary attention depends only on
        # differences, so counting from the first real token is the same.
        denoiser, params = pretrained
        tokens, real = golden[f"{case}.input_ids"], golden[f"{case}.attention_mask"] == 1
        assert not real.all()
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if arange else None
        logits = run(denoiser, params, tokens, real, positions)
        np.testing.assert_allclose(logits[real], golden[f"{case}.logits"][real], rtol=0, atol=1e-4)

    def test_hidden_states(self, pretrained, golden):
        denoiser, params = pretrained
        tokens = golden["plain0.input_ids"]
        batch, length = tokens.shape
        embedded = params["embedding"][tokens]
        np.testing.assert_allclose(embedded, golden["plain0.hidden0"], rtol=0, atol=1e-6)

        cfg = denoiser.config
        table = rotary_table(jnp.arange(length)[None], cfg.head_dim, cfg.rope_theta)
        first = jax.tree.map(lambda leaf: leaf[0], params["layers"])
        flat = embedded.reshape(batch * length, -1)
        out, _ = DenoiserBlock(cfg).apply({"params": first}, flat, table, None, batch)
        np.testing.assert_allclose(
            out.reshape(batch, length, -1), golden["plain0.hidden1"], rtol=0, atol=1e-4
        )

        last = run(denoiser, params, tokens, method="hidden")
        np.testing.assert_allclose(last, golden["plain0.hidden2"], rtol=0, atol=1e-4)

    def test_bfloat16_stays_close(self, golden):
        denoiser, params = denoisers.from_pretrained(FIXTURE, dtype=jnp.bfloat16)
        logits = run(denoiser, params, golden["plain0.input_ids"])
        assert logits.dtype == jnp.float32
        reference = golden["plain0.logits"]
        error = np.abs(logits - reference).max()
        assert 1e-4 < error < 0.05 * np.abs(reference).max()


class TestDenoiser:
    def test_logits_of_hidden_are_the_call(self, model):
        denoiser, params = model
        tokens = random_tokens(0, 2, 9)
        hidden = run(denoiser, params, tokens, method="hidden")
        some = run(denoiser, params, hidden[:, 4:7], method="logits")
        whole = run(denoiser, params, tokens)
        np.testing.assert_allclose(some, whole[:, 4:7], rtol=0, atol=1e-5)

    def test_every_output_depends_on_every_input(self, model):
        denoiser, params = model
        length = 6
        tokens = np.arange(3, 3 + length, dtype=np.int32)[None]

        def outputs(embedding):
            # Every token occurs once, so row v of the embedding is the input at one position.
            hidden = denoiser.apply(
                {"params": params | {"embedding": embedding}}, tokens, method="hidden"
            )
            return hidden[0].sum(axis=-1)

        jacobian = jax.jit(jax.jacrev(outputs))(params["embedding"])[:, tokens[0]]
        assert jacobian.shape == (length, length, TINY.hidden_size)
        assert (jnp.abs(jacobian).max(axis=-1) > 1e-4).all()

    def test_padding_is_invisible(self, model):
        denoiser, params = model
        tokens = random_tokens(1, 3, 8)
        plain = run(denoiser, params, tokens)
        padded = np.concatenate([random_tokens(2, 3, 5), tokens], axis=1)
        real = np.arange(13)[None].repeat(3, axis=0) >= 5
        logits = run(denoiser, params, padded, real)
        np.testing.assert_allclose(logits[:, 5:], plain, rtol=0, atol=1e-5)

    def test_rows_are_independent(self, model):
        denoiser, params = model
        tokens = random_tokens(3, 4, 8)
        real = np.arange(8)[None] >= np.array([0, 2, 4, 7])[:, None]
        together = run(denoiser, params, tokens, real)
        for row in range(4):
            # Everything else is another text.
            others, padding = random_tokens(10 + row, 4, 8), np.roll(real, 1, axis=0)
            others[row], padding[row] = tokens[row], real[row]
            alone = run(denoiser, params, others, padding)
            np.testing.assert_allclose(together[row], alone[row], rtol=0, atol=1e-5)

    def test_row_without_a_real_token_is_finite(self, model):
        denoiser, params = model
        nothing = np.zeros((1, 5), bool)

        def loss(params):
            return run(denoiser, params, random_tokens(4, 1, 5), nothing).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        assert np.isfinite(value)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))

    def test_last_positions_of_a_single_layer(self):
        config = dataclasses.replace(TINY, num_layers=1)
        params = tiny.random_params(config)
        tokens = random_tokens(1, 3, 9)
        whole, _ = jax.jit(forward, static_argnums=0)(config, params, tokens)
        last = jax.jit(functools.partial(forward, last=5), static_argnums=0)
        found, _ = last(config, params, tokens)
        np.testing.assert_allclose(found, whole[:, -5:], atol=1e-5)

    @pytest.mark.parametrize("last", [0, 10])
    def test_impossible_last_positions(self, model, last):
        denoiser, params = model
        with pytest.raises(ValueError, match=f"last={last} must lie in"):
            denoiser.apply(
                {"params": params}, jnp.zeros((1, 9), jnp.int32), last=last, method="hidden"
            )

    def test_remat_changes_nothing(self, model):
        denoiser, params = model
        tokens = random_tokens(5, 2, 7)

        def gradient(denoiser):
            loss = lambda p: jnp.square(denoiser.apply({"params": p}, tokens)).mean()
            return jax.jit(jax.grad(loss))(params)

        kept, recomputed = gradient(denoiser), gradient(denoisers.Denoiser(TINY, remat=True))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, recomputed
        )

    def test_tied_embeddings_have_one_table(self):
        config = dataclasses.replace(TINY, tie_embeddings=True)
        params = tiny.random_params(config)
        assert "head" not in params
        denoiser = denoisers.Denoiser(config)
        tokens = random_tokens(6, 1, 4)
        hidden = run(denoiser, params, tokens, method="hidden")
        logits = run(denoiser, params, tokens)
        np.testing.assert_allclose(logits, hidden @ params["embedding"].T, rtol=0, atol=1e-5)

    def test_initial_scales(self):
        config = dataclasses.replace(TINY, hidden_size=256, num_heads=8, head_dim=32)
        params = denoisers.init_params(config, jax.random.key(0))
        layers = params["layers"]
        assert params["embedding"].std() == pytest.approx(1.0, rel=0.05)
        assert layers["query"]["kernel"].std() == pytest.approx(256**-0.5, rel=0.05)
        residual = (256 * 2 * config.num_layers) ** -0.5
        assert layers["attention_out"]["kernel"].std() == pytest.approx(residual, rel=0.05)
        logits = run(denoisers.Denoiser(config), params, random_tokens(7, 4, 16))
        assert logits.std() == pytest.approx(1.0, rel=0.25)

    def test_too_long_a_sequence(self, model):
        denoiser, params = model
        with pytest.raises(ValueError, match=r"65 tokens is longer than max_length=64"):
            run(denoiser, params, random_tokens(8, 1, 65))


def test_grouped_attention_repeats_key_heads():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 7, 2, 4)).astype(np.float32)
    mask = rng.random((2, 5, 7)) > 0.4
    mask[:, :, 0] = True
    expected = jax.nn.dot_product_attention(
        query, key.repeat(3, axis=2), value.repeat(3, axis=2), mask=mask[:, None]
    )
    np.testing.assert_allclose(attention(query, key, value, mask), expected, rtol=0, atol=1e-5)
