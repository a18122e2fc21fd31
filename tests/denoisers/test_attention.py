"""Which attention a rollout runs, and that all of them attend to the same."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jax_unmask.denoisers import attention


@pytest.fixture
def device(monkeypatch):
    def pretend(name):
        monkeypatch.setattr(jax, "default_backend", lambda: name)

    return pretend


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(*inputs):
    return jax.jit(attention.attention)(*inputs)


@pytest.mark.parametrize(
    ("backend", "dtype", "width", "expected"),
    [
        ("gpu", "bfloat16", 128, True),
        ("gpu", "float16", 64, True),
        ("gpu", "float32", 128, False),
        ("gpu", "bfloat16", 256, False),
        ("gpu", "bfloat16", 20, False),
        ("cpu", "bfloat16", 128, False),
        ("tpu", "bfloat16", 128, False),
    ],
)
def test_where_the_fused_kernel_runs(device, backend, dtype, width, expected):
    device(backend)
    assert attention.fuses(dtype, width) == expected


def test_the_fused_kernel_can_be_turned_off(device, monkeypatch):
    device("gpu")
    monkeypatch.setenv("JAX_UNMASK_ATTENTION", "plain")
    assert not attention.fuses("bfloat16", 128)
    monkeypatch.setenv("JAX_UNMASK_ATTENTION", "fast")
    with pytest.raises(ValueError, match="JAX_UNMASK_ATTENTION='fast' must be"):
        attention.fuses("bfloat16", 128)


def test_a_tpu_runs_the_kernel_when_asked(device, monkeypatch):
    monkeypatch.setenv("JAX_UNMASK_ATTENTION", "flash")
    device("tpu")
    assert attention.fuses("bfloat16", 128)
    with pytest.raises(ValueError, match="block-causal attention"):
        attention.fuses("bfloat16", 128, blocks=True)
    device("cpu")
    with pytest.raises(ValueError, match="cannot be had on cpu for float32"):
        attention.fuses("float32", 128)


@pytest.mark.parametrize(("queries", "keys"), [(40, 150), (530, 540)])
def test_the_tpu_kernel_gives_the_plain_values(device, queries, keys):
    """Interpreted: the kernel's own code, its block sizes and lengths, without a TPU."""
    batch = 2
    query, key = draw(0, batch, queries, 4, 64), draw(1, batch, keys, 2, 64)
    value = draw(2, batch, keys, 2, 64)
    mask = (np.arange(keys) >= np.array([[0], [33]]))[:, None]
    expected = plain(query, key, value, mask)
    device("tpu")
    with pltpu.force_tpu_interpret_mode():
        found = attention.attention(query, key, value, mask, fused=True)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("masked", ["nothing", "padding", "blocks"])
def test_the_fused_kernel_gets_a_mask_of_the_shape_that_it_takes(monkeypatch, masked):
    """The kernel itself needs a GPU; JAX's own implementation stands in for it here."""
    whole = jax.nn.dot_product_attention

    def kernel(query, key, value, *, mask, implementation):
        assert implementation == "cudnn"
        if mask is not None:  # What cuDNN demands of a bias.
            assert mask.shape == (query.shape[0], 1, query.shape[1], key.shape[1])
        return whole(query, key, value, mask=mask)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    batch, queries, keys = 2, 3, 5
    query, key = draw(0, batch, queries, 4, 8), draw(1, batch, keys, 2, 8)
    value = draw(2, batch, keys, 2, 8)
    mask = {
        "nothing": None,
        "padding": np.arange(keys) >= np.array([[[2]], [[0]]]),
        "blocks": np.arange(keys) // 2 <= (np.arange(queries) // 2)[None, :, None],
    }[masked]
    fused = jax.jit(functools.partial(attention.attention, fused=True))
    found = fused(query, key, value, mask)
    np.testing.assert_allclose(found, plain(query, key, value, mask), atol=1e-6, rtol=1e-5)


def test_a_cache_beside_is_as_if_all_keys_were_one_array():
    batch, queries, keys, past = 2, 3, 3, 6
    query, key = draw(0, batch, queries, 4, 8), draw(1, batch, past + keys, 2, 8)
    value = draw(2, batch, past + keys, 2, 8)
    mask = draw(3, batch, 1, past + keys) > 0
    mask[0, :, -1] = True
    # Nothing is visible to the second row: finite, and the mean of all values.
    mask[1] = False
    cached = attention.CachedKeys(
        keys=key[:, :past].transpose(0, 2, 1, 3),
        values=value[:, :past].transpose(0, 2, 1, 3),
        cached_mask=mask[..., :past],
        mask=mask[..., past:],
    )
    found = jax.jit(attention.attention_with_cache)(query, key[:, past:], value[:, past:], cached)
    np.testing.assert_allclose(found, plain(query, key, value, mask), atol=1e-6, rtol=1e-5)
