"""Low-rank adapters: nothing changes at first, the merged model does the same, errors are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import tiny
from jax_unmask import denoisers

CONFIG = tiny.denoiser_config(vocab_size=32, num_layers=2, intermediate_size=24)
PARAMS = tiny.random_params(CONFIG)
TOKENS = jnp.arange(24).reshape(2, 12) % 32


@jax.jit
def logits(params):
    return denoisers.Denoiser(CONFIG).apply({"params": params}, TOKENS)


def trained(adapters):
    """Adapters as some training could leave them."""
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), adapters
    )


def test_fresh_adapters_change_nothing_and_trained_ones_merge_exactly():
    adapters = denoisers.init_adapters(CONFIG, jax.random.key(2), rank=3)
    plain = logits(PARAMS)
    np.testing.assert_array_equal(logits(denoisers.with_adapters(PARAMS, adapters)), plain)
    adapters = trained(adapters)
    adapted = logits(denoisers.with_adapters(PARAMS, adapters))
    assert np.abs(adapted - plain).max() > 0.1
    merged = denoisers.merge_adapters(PARAMS, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(logits(merged), adapted, atol=2e-5)
    some = denoisers.init_adapters(CONFIG, jax.random.key(2), rank=3, targets=("query", "down"))
    assert {path[-2] for path in flatten_dict(some)} == {"query", "down"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "rank=0 "), ({"rank": 2, "targets": ("q_proj",)}, "'q_proj' .* attention")],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        denoisers.init_adapters(CONFIG, jax.random.key(0), **settings)
