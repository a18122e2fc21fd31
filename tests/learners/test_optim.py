"""Schedules, clipping and weight decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from jax_unmask.denoisers import init_params
from jax_unmask.denoisers.adapters import init_adapters
from jax_unmask.denoisers.config import ExpertsConfig
from jax_unmask.learners.optim import OptimizerSettings, decay_mask


def test_cosine_schedule():
    rate = OptimizerSettings(1.0, warmup_steps=4, final_fraction=0.1).rate(12)
    got = [float(rate(step)) for step in (0, 1, 3, 4, 8, 12, 100)]
    np.testing.assert_allclose(got, [0.25, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1], rtol=1e-6)


def test_constant_schedule_without_warmup():
    rate = OptimizerSettings(0.3, 0, "constant").rate(5)
    np.testing.assert_allclose([float(rate(step)) for step in (0, 4, 50)], 0.3, rtol=1e-6)


def test_gradients_are_clipped_by_global_norm():
    # Sign-like Adam hides the scale of one gradient, not the ratio of two: a clipped spike must
    # leave less trace in the second moment.
    params = {"kernel": jnp.ones(2)}
    spike, small = {"kernel": jnp.full(2, 1e4)}, {"kernel": jnp.full(2, 0.1)}

    def second_update(clip):
        settings = OptimizerSettings(1.0, 0, "constant", weight_decay=0.0, b1=0.0, grad_clip=clip)
        optimizer = settings.build(10)
        state = optimizer.init(params)
        _, state = optimizer.update(spike, state, params)
        updates, _ = optimizer.update(small, state, params)
        return abs(float(updates["kernel"][0]))

    assert second_update(None) < 1e-4
    assert second_update(0.2) > 0.5


def test_weight_decay_spares_biases_and_gains():
    params = {
        "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
        "block": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))},
        "embedding": jnp.ones((5, 3)),
        "candidate_bias": jnp.ones(2),
    }
    assert decay_mask(params) == {
        "norm": {"scale": False, "bias": False},
        "block": {"kernel": True, "bias": False},
        "embedding": True,
        "candidate_bias": False,
    }
    optimizer = OptimizerSettings(0.1, 0, "constant", weight_decay=0.5, grad_clip=None).build(10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["block"]["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(new["block"]["bias"], 1.0)
    np.testing.assert_array_equal(new["norm"]["scale"], 1.0)


def test_a_warmup_that_takes_the_whole_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps = 10.* for example 5"):
        OptimizerSettings(warmup_steps=10).build(10)


def test_stable_schedule_of_a_longer_run_begins_with_the_same_steps():
    short = OptimizerSettings(2.0, 2, "stable", final_fraction=0.5).rate(8)
    long = OptimizerSettings(2.0, 2, "stable", final_fraction=0.5).rate(16)
    np.testing.assert_allclose([short(k) for k in range(9)], [1, 2, 2, 2, 2, 2, 2, 1.5, 1])
    np.testing.assert_allclose([long(k) for k in range(13)], [1, *[2] * 12])
    np.testing.assert_allclose([long(k) for k in (14, 16, 20)], [1.5, 1, 1])


def test_muon_makes_updates_of_kernels_orthogonal_and_leaves_the_rest_to_adamw():
    key = jax.random.key(0)
    params = {
        "layers": {"kernel": jnp.zeros((3, 16, 8)), "bias": jnp.zeros((3, 8))},
        "embedding": jnp.zeros((10, 8)),
        "head": jnp.zeros((10, 8)),
    }
    gradient = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
    optimizer = OptimizerSettings(0.1, 0, "constant", grad_clip=None, kind="muon").build(10)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    adam = optax.nadamw(0.1, b2=0.99, weight_decay=0.1)
    expected, _ = adam.update(gradient, adam.init(params), params)
    kernel = np.asarray(updates["layers"].pop("kernel"))
    expected["layers"].pop("kernel")
    for ours, theirs in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    # Root mean square of a 16 x 8 matrix whose 8 singular values are all s: s / 4. Newton-Schulz
    # leaves them between 0.7 and 1.2 of what they should be.
    singular = np.linalg.svd(kernel, compute_uv=False) / (0.1 * 0.2 * 4)
    assert singular.shape == (3, 8)
    assert (singular > 0.6).all()
    assert (singular < 1.3).all()
    raw = np.linalg.svd(gradient["layers"]["kernel"], compute_uv=False)
    assert (raw.max(1) > 2 * raw.min(1)).all()


@pytest.mark.parametrize("experts", [False, True])
def test_muon_takes_all_matrices_but_tables_and_adapters_too(experts):
    config = tiny.denoiser_config()
    if experts:
        layers = (True,) * config.num_layers
        mixture = ExpertsConfig(num_experts=3, per_token=2, size=8, layers=layers)
        config = dataclasses.replace(config, experts=mixture)
    params = init_params(config, jax.random.key(0))
    adapters = init_adapters(config, jax.random.key(1), rank=2)
    optimizer = OptimizerSettings(0.1, 0, "constant", grad_clip=None, kind="muon").build(10)
    adam = optimizer.init({"base": params, "lora": adapters}).inner_states["adam"]
    left = {
        jax.tree_util.keystr(path[-1:])
        for path, leaf in jax.tree_util.tree_leaves_with_path(adam)
        if leaf.ndim > 1
    }
    # Gains are stacked over layers.
    assert left == {"['embedding']", "['head']", "['scale']"}
