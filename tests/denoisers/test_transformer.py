"""The transformer against golden logits, and the properties that a denoiser must have."""

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
    def test_padded_logits(self, pretrained, golden, case):
        # The reference counts positions from the first pad; rotary attention depends only on
        # differences, so counting from the first real token is the same.
        denoiser, params = pretrained
        tokens, real = golden[f"{case}.input_ids"], golden[f"{case}.attention_mask"] == 1
        assert not real.all()
        logits = run(denoiser, params, tokens, real)
        np.testing.assert_allclose(logits[real], golden[f"{case}.logits"][real], rtol=0, atol=1e-4)


class TestDenoiser:
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

    @pytest.mark.parametrize("last", [0, 10])
    def test_impossible_last_positions(self, model, last):
        denoiser, params = model
        with pytest.raises(ValueError, match=rf"last={last} .*\[1, 9\]"):
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
        with pytest.raises(ValueError, match=r"65 tokens .* max_length=64"):
            run(denoiser, params, random_tokens(8, 1, 65))
