"""Quantised weights: how near they come, what they take, and what is refused."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import denoisers
from jax_unmask.denoisers import quantization

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
MASKS = {"llada_moe": 314, "llada2_moe": 316}
MODELS = ("dream", "llada2_moe")
# Error of the logits over their size, both as root mean squares: int8 keeps 7 bits of a channel's
# largest weight, e4m3 keeps 3 bits of each weight. (With random experts, a token that goes to
# another expert makes errors of any size; those families are compared exactly only.)
TOLERANCE = {"int8": 0.03, "fp8": 0.1}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


def load(name, **more):
    return denoisers.from_pretrained(FIXTURES / name, mask_token_id=MASKS.get(name), **more)


@pytest.fixture(scope="module")
def logits(name):
    """Logits of the model as it is and quantised, with the parameters."""
    found = {}
    for kind in (None, *quantization.TYPES):
        denoiser, params = load(name, quantization=kind)
        found[kind] = params, run(denoiser, params)
    return found


@functools.partial(jax.jit, static_argnames="denoiser")
def run(denoiser, params):
    return denoiser.apply({"params": params}, np.arange(24).reshape(2, 12) * 11 % 300)


def restored(leaf):
    """The float32 parameter that a quantised one stands for."""
    if not quantization.is_quantized(leaf):
        return leaf
    return leaf.qvalue.astype(jnp.float32) * leaf.scale


@pytest.mark.parametrize("kind", quantization.TYPES)
class TestFamilies:
    @pytest.mark.default_cases("dream-int8", "dream-fp8")
    def test_logits_are_those_of_the_weights_that_they_stand_for(self, logits, name, kind):
        params, found = logits[kind]
        wide = jax.tree.map(restored, params, is_leaf=quantization.is_quantized)
        np.testing.assert_allclose(found, run(load(name)[0], wide), rtol=0, atol=1e-4)

    def test_logits_stay_near(self, logits, name, kind):
        if name.endswith("moe"):
            pytest.skip("see TOLERANCE")
        exact, near = (np.asarray(logits[key][1], np.float64) for key in (None, kind))
        error = np.sqrt(np.square(near - exact).mean() / np.square(exact).mean())
        assert 1e-4 < error < TOLERANCE[kind]

    def test_every_matrix_of_a_layer_takes_a_byte_per_weight(self, logits, kind):
        exact, quantised = (
            dict(jax.tree.flatten_with_path(tree, is_leaf=quantization.is_quantized)[0])
            for tree in (logits[None][0], logits[kind][0])
        )
        assert exact.keys() == quantised.keys()
        for path, value in exact.items():
            names = tuple(key.key for key in path)
            leaf = quantised[path]
            is_matrix = value.ndim > 2 and names[-1] != "router"
            assert quantization.is_quantized(leaf) == is_matrix, names
            if not is_matrix:
                np.testing.assert_array_equal(leaf, value)
                continue
            assert leaf.qvalue.shape == value.shape
            assert leaf.qvalue.dtype == quantization.TYPES[kind]
            # One scale per layer, expert and output channel.
            assert leaf.scale.shape == (*value.shape[:-2], 1, value.shape[-1])
            assert leaf.scale.dtype == jnp.float32
            # Half of the largest distance between neighbours: 1 for int8, 32 for e4m3.
            step = np.asarray(leaf.scale) * (0.5 if kind == "int8" else 16)
            assert (np.abs(restored(leaf) - value) <= step * 1.001).all()


def test_orbax_weights_are_quantised_alike(tmp_path):
    denoisers.save_orbax(tmp_path / "model", *load("llada"))
    again, params = denoisers.from_pretrained(tmp_path / "model", quantization="int8")
    denoiser, expected = load("llada", quantization="int8")
    assert again == denoiser
    jax.tree.map(np.testing.assert_array_equal, params, expected)


class TestRefusals:
    def test_unknown_kind(self):
        with pytest.raises(ValueError, match="quantization='int4'"):
            denoisers.from_pretrained("no/such/model", quantization="int4")

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "qwix", None)
        with pytest.raises(ImportError, match=r"pip install 'jax_unmask\[quantization\]'"):
            denoisers.from_pretrained("no/such/model", quantization="int8")

    def test_saving(self, tmp_path):
        model = load("llada", quantization="int8")
        for save in (denoisers.save_pretrained, denoisers.save_orbax):
            with pytest.raises(ValueError, match=r"quantised parameters .*without quantization"):
                save(tmp_path / "model", *model)
        assert not (tmp_path / "model").exists()
