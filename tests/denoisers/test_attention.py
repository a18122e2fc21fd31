"""Which attention a rollout runs, and that all of them attend to the same."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jax_unmask.denoisers import attention, tpu_attention
from jax_unmask.denoisers.positions import block_causal


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
        ("tpu", "bfloat16", 128, True),
        ("tpu", "bfloat16", 64, False),
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


def test_a_tpu_runs_the_kernel_where_scores_are_large(device, monkeypatch, caplog):
    device("tpu")
    caplog.set_level("INFO")
    attention._log.cache_clear()
    small, large = (jax.ShapeDtypeStruct((rows, 456, 32, 128), "bfloat16") for rows in (1, 8))
    assert not attention.takes_kernel(small, small)
    assert attention.takes_kernel(large, large)
    assert re.search(r"\b456 .* 1 rows: plain", caplog.text)
    assert re.search(r"\b456 .* 8 rows: .*Pallas", caplog.text)
    long = jax.ShapeDtypeStruct((1, 9000, 32, 128), "bfloat16")
    assert not attention.takes_kernel(long, long)
    monkeypatch.setenv("JAX_UNMASK_ATTENTION", "flash")
    assert attention.takes_kernel(small, small)
    with pytest.raises(ValueError, match=r"'flash'.* tpu .*bfloat16 .* 64"):
        attention.fuses("bfloat16", 64)
    device("cpu")
    with pytest.raises(ValueError, match=r"'flash'.* cpu .*float32"):
        attention.fuses("float32", 128)


def test_training_has_the_kernel_of_a_tpu_alone(device):
    device("tpu")
    assert attention.fuses("bfloat16", 128, gradients=True)
    device("gpu")
    assert not attention.fuses("bfloat16", 128, gradients=True)


def rule(kind, queries, keys):
    """An attention rule for two rows, the second with padding on the left, and its mask."""
    real = np.arange(keys) >= np.array([[0], [33]])
    if kind == "nothing":
        return None, None
    if kind == "padding":
        return real[:, None], real[:, None]
    if kind == "blocks":
        positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
        seen = positions[:, :, None] // 5 >= positions[:, None] // 5
        bounds = block_causal(jnp.asarray(positions), 5, real)
        return bounds.replace(label=bounds.label[:, -queries:]), (seen & real[:, None])[
            :, -queries:
        ]
    copy = keys // 3
    place = np.arange(keys)
    copies = attention.Copies(
        block=jnp.asarray(np.where(place < keys - copy, place, place - copy) // 7)[None],
        noisy=jnp.asarray(place >= keys - copy)[None],
        real=jnp.asarray(real),
        text=jnp.asarray((place % (keys - copy) > 60).astype(np.int32))[None],
    )
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, real.shape), copies)
    return copies, copies.visible(copies.block, copies.noisy, copies.text)


@pytest.mark.parametrize(
    ("kind", "queries", "keys"),
    [("nothing", 17, 150), ("padding", 300, 141), ("blocks", 261, 301), ("copies", 141, 141)],
)
def test_the_tpu_kernel_gives_the_plain_values_and_gradients(
    device, monkeypatch, kind, queries, keys
):
    """Interpreted: the kernel's own code and blocks, without a TPU; memory holds NaN at first."""
    monkeypatch.setenv("JAX_UNMASK_ATTENTION", "flash")
    monkeypatch.setattr(tpu_attention, "_SCORES", 128 * keys)
    inputs = (draw(0, 2, queries, 2, 128), draw(1, 2, keys, 1, 128), draw(2, 2, keys, 1, 128))
    given, mask = rule(kind, queries, keys)
    direction = draw(3, 2, queries, 2, 128)
    if kind == "copies":  # Of padding nobody reads what it sees.
        direction *= np.asarray(given.real)[..., None, None]
    function = attention.attention_in_copies if kind == "copies" else attention.attention

    def loss(inputs, mask, function, **options):
        out = function(*inputs, mask, **options)
        return jnp.sum(out * direction), out

    value_and_gradient = jax.value_and_grad(loss, has_aux=True)
    (_, expected), of_expected = value_and_gradient(inputs, mask, attention.attention)
    device("tpu")
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        (_, found), of_found = value_and_gradient(inputs, given, function, fused=True)
    seen = slice(None) if kind != "copies" else np.asarray(given.real)
    np.testing.assert_allclose(found[seen], expected[seen], atol=4e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), of_found, of_expected)


@pytest.mark.parametrize("turning", [None, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rotations_by_register_are_the_same(dtype, turning):
    x = jnp.asarray(draw(0, 2, 16, 3, 16), dtype)
    table = attention.rotary_table(jnp.arange(16)[None] + jnp.asarray([[0], [5]]), 16, 1e4, turning)
    both = [attention.rotate(x, table, by_register=each) for each in (False, True)]
    np.testing.assert_allclose(*both, atol=1e-6 if dtype == "float32" else 2e-2)


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
