"""The policy networks: golden logits of the PyTorch reference, initialisation, extra observations."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unmask.policies.base import Observation
from jax_unmask.policies.checkpoint import load_policy
from jax_unmask.policies.layers import time_embedding
from jax_unmask.policies.network import NetworkConfig, NetworkInputs, position_features

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "policy"
PUBLISHED = ("dit_confidence", "dit_confidence_topp", "dit_confidence_period")
SMALL = NetworkConfig(hidden_dim=16, feedforward_dim=32, time_embed_dim=8)


def observation(rng: np.random.Generator, rows: int = 3, length: int = 8, **leaves) -> Observation:
    """A random observation with blocks of half the canvas."""
    masked = rng.random((rows, length)) < 0.7
    start = rng.integers(0, 2, rows) * (length // 2)
    index = np.arange(length)
    inside = (index >= start[:, None]) & (index < start[:, None] + length // 2)
    probs = np.sort(rng.dirichlet(np.ones(4), (rows, length)))[..., ::-1].astype(np.float32)
    fields = {
        "candidate": rng.integers(0, 5, (rows, length)),
        "confidence": probs[..., 0],
        "top_probs": probs,
        "masked": masked,
        "legal": masked & inside,
        "step": rng.integers(0, length, rows),
        "step_in_block": np.zeros(rows, int),
        "block_start": start,
        "entropy": rng.random((rows, length), np.float32),
        "hidden": rng.standard_normal((rows, length, 6)).astype(np.float32),
    }
    fields |= leaves
    return Observation(**jax.tree.map(jnp.asarray, fields), block_length=length // 2)


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
