"""The policy networks: golden logits of the PyTorch reference, start values, observations."""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny
from jax_unmask.policies.checkpoint import load_policy
from jax_unmask.policies.heuristics import EntropyBounded
from jax_unmask.policies.layers import time_embedding
from jax_unmask.policies.network import (
    NetworkConfig,
    NetworkInputs,
    confidence_rank,
    position_features,
    with_inputs,
)
from jax_unmask.policies.tensors import tensor_specs

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "policy"
PUBLISHED = ("dit_confidence", "dit_confidence_topp", "dit_confidence_period")
SMALL = NetworkConfig(hidden_dim=16, feedforward_dim=32, time_embed_dim=8)
RICH = dataclasses.replace(SMALL, **tiny.RICH_NETWORK, hidden_size=6)


@functools.cache
def _initialised(config: NetworkConfig):
    """The network (its compiled `apply`) and random parameters; AdaLN maps are not zero."""
    network = config.build()
    params = jax.jit(network.init)(jax.random.key(0), config.dummy_inputs(2))
    keys = iter(jax.random.split(jax.random.key(1), 2 * config.num_blocks))
    for index in range(config.num_blocks):
        layer = params["params"][f"block_{index}"]["modulation"]
        for name, value in layer.items():
            layer[name] = 0.2 * jax.random.normal(next(keys), value.shape)
    return jax.jit(network.apply), params


def _get(tree, path):
    return functools.reduce(lambda node, key: node[key], path, tree)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_logits_equal_the_reference(name: str, case: str):
    policy, params = load_policy(FIXTURES / name)
    cases = load_file(FIXTURES / name / "cases.safetensors")
    inputs = NetworkInputs(
        masked=jnp.asarray(cases[f"{case}.mask"]),
        t=jnp.asarray(cases[f"{case}.timestep"][..., 0]),
        features=jnp.asarray(cases[f"{case}.confidences"]),
    )
    logits = jax.jit(policy.network.build().apply)({"params": params["network"]}, inputs)
    np.testing.assert_allclose(logits, cases[f"{case}.logits"], atol=1e-5)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_hidden_logits_equal_the_reference(case: str):
    policy, params = load_policy(FIXTURES / "dit_hidden")
    cases = load_file(FIXTURES / "dit_hidden" / "cases.safetensors")
    inputs = NetworkInputs(
        masked=jnp.asarray(cases[f"{case}.mask"]),
        t=jnp.asarray(cases[f"{case}.timestep"][..., 0]),
        hidden=jnp.asarray(cases[f"{case}.hidden_states"]),
    )
    logits = jax.jit(policy.network.build().apply)({"params": params["network"]}, inputs)
    np.testing.assert_allclose(logits, cases[f"{case}.logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "period"), [("dit_confidence", 1), ("dit_confidence_period", 1e4)]
)
def test_time_embedding_is_rounded_to_bfloat16_under_jit(name: str, period: float):
    cases = load_file(FIXTURES / name / "cases.safetensors")
    embed = jax.jit(lambda t: time_embedding(t, 20, period))
    for case in ("c0", "c1", "c2"):
        got = embed(cases[f"{case}.timestep"][..., 0])
        np.testing.assert_array_equal(got, cases[f"{case}.time_embedding"][..., 0, :])


def test_odd_time_embedding_ends_in_zero():
    assert time_embedding(jnp.array([0.3]), 5, 1.0)[0, -1] == 0


def test_published_size_and_initialisation():
    """331,265 parameters; AdaLN maps and norm biases zero, output bias -2 (arXiv 2512.09106)."""
    config = NetworkConfig()
    params = jax.jit(config.build().init)(jax.random.key(0), config.dummy_inputs(4))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 331_265
    expected = next(
        entry
        for entry in json.loads((FIXTURES / "meta.json").read_text())["policies"]
        if entry["name"] == "smart_init"
    )
    file = {spec.name: spec.write(_get(params, spec.path)) for spec in tensor_specs(config, ())}
    for name in expected["zeroed"]:
        assert not file[name].any(), name
    assert file["output_proj.bias"] == expected["output_bias"]
    # torch.nn.Linear: uniform in +-1/sqrt(fan_in), weights and biases alike.
    for name, fan_in in (("linear2", 512), ("linear1", 128), ("q_proj", 128)):
        for kind in ("weight", "bias"):
            values = file[f"transformer_blocks.0.{name}.{kind}"] * np.sqrt(fan_in)
            assert 0.9 < np.abs(values).max() <= 1
            np.testing.assert_allclose(values.std(), 3**-0.5, rtol=0.15)


def test_rows_and_leading_axes_are_independent(make_observation):
    obs = make_observation(1)
    inputs = RICH.observe(obs)
    apply, params = _initialised(RICH)
    logits = apply(params, inputs)
    backwards = apply(params, jax.tree.map(lambda leaf: leaf[::-1], inputs))
    np.testing.assert_allclose(backwards, logits[::-1], atol=1e-6)
    folded = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), inputs)
    np.testing.assert_allclose(apply(params, folded).reshape(4, -1), logits, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "leaf"),
    [
        ({}, "top_probs"),
        ({}, "masked"),
        ({}, "step"),
        ({"entropy": True}, "entropy"),
        ({"token_buckets": 5}, "candidate"),
        ({"candidate_attention": (4.0, 4.0)}, "candidate"),
        ({"hidden_size": 6}, "hidden"),
        ({"position": True}, "legal"),
        ({"rank": True}, "confidence"),
        ({"rank": True, "entropy": True, "logs": True}, "confidence"),
        ({"rank_attention": (2.0, 2.0)}, "confidence"),
    ],
)
@pytest.mark.default_cases(
    "option0-top_probs", "option3-entropy", "option5-candidate", "option6-hidden"
)
def test_reads_what_its_options_say(make_observation, option, leaf):
    """A changed leaf changes the logits with the option on, and not with it off."""
    obs = make_observation(2)
    other = obs.replace(**{leaf: getattr(make_observation(3), leaf)})
    config = dataclasses.replace(SMALL, **option)
    apply, params = _initialised(config)
    change = apply(params, config.observe(obs)) - apply(params, config.observe(other))
    assert np.abs(change).max() > 1e-4
    if option:
        apply, params = _initialised(SMALL)
        same = apply(params, SMALL.observe(obs)) - apply(params, SMALL.observe(other))
        assert not same.any()


@pytest.mark.parametrize(("option", "leaf"), [("time", "step"), ("mask", "masked")])
def test_leaves_out_what_it_shall_not_read(make_observation, option, leaf):
    obs = make_observation(2)
    other = obs.replace(**{leaf: getattr(make_observation(3), leaf)})
    config = dataclasses.replace(SMALL, **{option: False})
    apply, params = _initialised(config)
    np.testing.assert_array_equal(
        apply(params, config.observe(obs)), apply(params, config.observe(other))
    )


def test_candidate_attention_joins_masked_positions_with_one_candidate(make_observation):
    """With a huge bias, a position hears only masked positions that propose its candidate."""
    config = dataclasses.replace(SMALL, candidate_attention=(1e4, 1e4))
    apply, params = _initialised(config)
    masked = np.array([[True, True, True, False]])
    candidate = np.array([[3, 1, 3, 3]])
    obs = make_observation(4, rows=1, length=4, masked=masked, candidate=candidate)

    def first_logit(top_probs):
        return apply(params, config.observe(obs.replace(top_probs=top_probs)))[0, 0]

    heard = np.abs(jax.grad(first_logit)(obs.top_probs))[0, :, 0] > 0
    assert heard.tolist() == [True, False, True, False]


def test_candidate_attention_takes_one_value_per_head():
    config = dataclasses.replace(SMALL, candidate_attention=[4, 0.5])
    assert hash(config) == hash(dataclasses.replace(config, candidate_attention=(4, 0.5)))
    _, params = _initialised(config)
    assert params["params"]["block_0"]["candidate_bias"].tolist() == [4.0, 0.5]


@pytest.mark.parametrize("option", ["position_embedding", "pair_attention"])
def test_positions_can_be_told_apart(make_observation, option):
    """Where a row's positions look alike, only a learned position makes their logits differ."""
    obs = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.ravel()[0]), make_observation(7))
    width = obs.masked.shape[-1]
    config = dataclasses.replace(SMALL, **{option: width})
    apply, params = _initialised(config)
    path = (option,) if option == "position_embedding" else ("block_0", "pair_bias")
    table = _get(params["params"], path)
    _get(params["params"], path[:-1])[path[-1]] = jax.random.normal(jax.random.key(2), table.shape)
    features = config.observe(obs)
    if option == "pair_attention":  # It moves attention, which needs something to choose from.
        features = features.replace(features=features.features.at[:, 0].add(1.0))
    logits = apply(params, features)[0, 1:]
    assert len(np.unique(np.round(logits, 6))) == len(logits)
    short = dataclasses.replace(config, **{option: width - 1})
    with pytest.raises(ValueError, match=f"{option}={width - 1} .* {width} positions"):
        short.build().init(jax.random.key(0), features)


def test_token_buckets_hash_modulo(make_observation):
    config = dataclasses.replace(SMALL, token_buckets=5)
    apply, params = _initialised(config)
    obs = make_observation(5)
    moved = obs.replace(candidate=obs.candidate + 10)
    np.testing.assert_array_equal(
        apply(params, config.observe(obs)), apply(params, config.observe(moved))
    )


def test_confidence_rank_counts_legal_positions_and_breaks_ties_to_the_left():
    confidence = jnp.array([[0.5, 0.9, 0.5, 0.7, 0.99]])
    legal = jnp.array([[True, True, True, True, False]])
    assert confidence_rank(confidence, legal).tolist() == [[2, 0, 3, 1, 5]]


def test_rank_shows_what_the_entropy_bounded_sampler_bounds(make_observation):
    """Thresholding the last feature at gamma is that sampler, where both orders agree."""
    config = dataclasses.replace(SMALL, entropy=True, rank=True)
    obs = make_observation(9)
    obs = obs.replace(entropy=1.0 - obs.confidence)
    features = config.observe(obs).features
    sampler = EntropyBounded()
    gamma = 0.8
    fill = sampler(sampler.params(gamma=gamma), obs, None).fill
    np.testing.assert_array_equal(fill, obs.legal & (features[..., -1] <= gamma))
    assert 0 < fill.sum() < obs.legal.sum()


def test_rank_attention_joins_each_position_with_more_confident_ones(make_observation):
    """With a huge bias, a position hears only legal positions that are more confident."""
    config = dataclasses.replace(SMALL, rank_attention=(1e4, 1e4))
    apply, params = _initialised(config)
    obs = make_observation(4, rows=1, length=4, legal=np.array([[True, True, True, False]]))
    obs = obs.replace(confidence=jnp.array([[0.5, 0.3, 0.7, 0.9]]))

    def first_logit(top_probs):
        return apply(params, config.observe(obs.replace(top_probs=top_probs)))[0, 0]

    heard = np.abs(jax.grad(first_logit)(obs.top_probs))[0, :, 0] > 0
    assert heard.tolist() == [True, False, True, False]


def test_reads_the_size_of_the_canvas(make_observation):
    inputs = dataclasses.replace(SMALL, length=True).observe(make_observation(1, length=4))
    np.testing.assert_allclose(inputs.features[..., -1], 0.25)


def test_logs_tell_small_doubts_apart_and_hold_sums_of_any_canvas(make_observation):
    """On a canvas of 128, sums of entropies reach 200 nats, and .98 and .99 are not the same."""
    obs = make_observation(1, length=128)
    config = dataclasses.replace(SMALL, entropy=True, rank=True, position=True, logs=True)
    features = jnp.moveaxis(config.observe(obs).features, -1, 0)
    inputs = dict(zip(config.feature_names, features, strict=True))
    doubt = jnp.log10(1 - obs.top_probs[..., 0] + 1e-4) / 4
    np.testing.assert_allclose(inputs["log_doubt"], doubt, rtol=1e-4, atol=1e-6)
    total = jnp.log10(inputs["entropy_before"] + 0.01) / 2
    np.testing.assert_allclose(inputs["log_entropy_before"], total, rtol=1e-5)
    left = jnp.cumsum(obs.masked, axis=-1) - obs.masked
    np.testing.assert_allclose(inputs["log_holes_left"], jnp.log2(1 + left) / 8, rtol=1e-5)
    assert all(jnp.abs(inputs[name]).max() < 1.5 for name in inputs if name.startswith("log"))


def test_a_network_that_reads_more_computes_the_same_at_first(make_observation):
    obs = make_observation(1, alpha=jnp.full(4, 0.3))
    saved = dataclasses.replace(SMALL, rank=True, take_back=False)
    apply, params = _initialised(saved)
    more = dataclasses.replace(
        saved, top_k=2, entropy=True, position=True, logs=True, length=True, alphas=(0.1, 10.0)
    )
    grown = {"params": with_inputs(params["params"], saved, more)}
    wide, _ = _initialised(more)
    expected = apply(params, saved.observe(obs))
    np.testing.assert_allclose(wide(grown, more.observe(obs)), expected, atol=1e-6)
    with pytest.raises(ValueError, match="rank"):
        with_inputs(params["params"], saved, dataclasses.replace(more, rank=False))


def test_position_features():
    masked = jnp.array([[True, False, True, True]])
    legal = jnp.array([[False, False, True, True]])
    features = position_features(masked, legal)
    np.testing.assert_allclose(features["place"], [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(features["holes_left"][0], [0, 1, 0.5, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(
        features["log_holes_left"][0], [0, 1 / 8, 1 / 8, math.log2(3) / 8], rtol=1e-6
    )
    assert features["leftmost"].tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(
    ("config", "leaves", "message"),
    [
        (dataclasses.replace(SMALL, top_k=9), {}, "top_k=9"),
        (dataclasses.replace(SMALL, entropy=True), {"entropy": None}, "lacks entropy"),
        (dataclasses.replace(SMALL, hidden_size=6), {"hidden": None}, "lacks hidden"),
    ],
)
def test_missing_observations_are_named(make_observation, config, leaves, message):
    obs = make_observation(6).replace(**leaves)
    apply, params = _initialised(config)
    with pytest.raises(ValueError, match=message):
        apply(params, config.observe(obs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 10, "num_heads": 2}, "hidden_dim = 10"),
        ({"rank_attention": (1.0,)}, r"rank_attention = \(1\.0,\)"),
        ({"candidate_attention": (1.0, 2.0, 3.0)}, "candidate_attention = .*num_heads = 2"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**changes)
