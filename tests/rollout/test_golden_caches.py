"""Decodings of the samplers with caches, token by token (Fast-dLLM for LLaDA and Dream; SDAR)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import policies
from jax_unmask.policies.base import Action, Needs
from jax_unmask.rollout import Cache, Prompts, RolloutSettings, rollout, row_keys


@dataclasses.dataclass(frozen=True)
class FirstOfBlock:
    """Fast-dLLM for Dream fills the first position of a block with the forward that opens it."""

    policy: policies.Policy

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def __call__(self, params, obs, keys):
        action = self.policy(params, obs, keys)
        first = obs.legal & (jnp.arange(obs.legal.shape[-1]) == obs.block_start[:, None])
        fill = jnp.where(obs.step_in_block[:, None] == 0, first, action.fill)
        return Action(fill=fill, log_prob=action.log_prob)


def chosen_policy(case):
    """The policy of a case, and its settings."""
    blocks = case["gen_length"] // case["block_length"]
    if case.get("alg") == "entropy":
        policy = FirstOfBlock(policies.Entropy(reference_compat=True))
        return policy, policy.policy.params(steps=case["steps"] // blocks)
    if case["threshold"] is not None:
        policy = policies.Threshold()
        params = policy.params(threshold=case["threshold"])
        return (FirstOfBlock(policy) if case["model"] == "dream" else policy), params
    if case["factor"] is not None:
        policy = policies.Factor(reference_compat=True)
        return policy, policy.params(factor=case["factor"])
    policy = policies.TopConfidence()
    return policy, policy.params(steps=case["steps"] // blocks)


FAST = ["fastdllm_quota", "fastdllm_threshold", "fastdllm_threshold_full", "fastdllm_factor"]
CACHED = [*FAST, "fastdream_threshold", "fastdream_entropy"]


@pytest.mark.parametrize(
    "name",
    [f"{name}_none" for name in FAST]
    + [f"{name}_{kind}" for name in CACHED for kind in ("prefix", "dual")],
)
def test_fast_dllm(models, recorded, name):
    arrays, cases = recorded
    kind = name.rpartition("_")[2]
    cache = None if kind == "none" else Cache(kind)
    case, prompt = cases[name], arrays[f"{name}.prompt"]
    width = prompt.shape[1]
    policy, params = chosen_policy(case)
    out = rollout(
        *models[case["model"]],
        policy,
        params,
        Prompts(prompt, np.ones(prompt.shape, bool)),
        row_keys(jax.random.key(0), 1),
        RolloutSettings(
            gen_length=case["gen_length"], block_length=case["block_length"], cache=cache
        ),
    )
    np.testing.assert_array_equal(out.tokens, arrays[f"{name}.sequences"][:, width:])
    np.testing.assert_array_equal(out.step_map, arrays[f"{name}.step_map"][:, width:])
    assert out.nfe == out.forwards == case["nfe"]
    if cache is None:
        return
    is_full = arrays[f"{name}.forward_offset"] == 0
    assert out.by_kind.full == out.by_kind.full_executed == is_full.sum()
    assert out.by_kind.cached == out.by_kind.cached_executed == (~is_full).sum()
    assert out.useful_forward_fraction == 1.0


@pytest.mark.parametrize(
    "name",
    [
        "sdar_static_b4",
        "sdar_static_b8_partial",
        "sdar_static_b8_ds4",
        "sdar_dynamic_b4",
        "sdar_dynamic_b8",
        "sdar_sequential_b4",
        "sdar_stop",
    ],
)
@pytest.mark.parametrize("cache", [None, Cache("block")], ids=str)
def test_sdar(models, recorded, name, cache):
    """The record's canvas ends with a block of the text; ours, with a multiple of blocks.

    Blocks behind are invisible, so what the record has must be the same. It also writes the keys
    and values of the last block, which nobody reads; ours does not.
    """
    arrays, cases = recorded
    case, prompt = cases[name], arrays[f"{name}.prompt"]
    width, block = prompt.shape[1], case["block_length"]
    length = case["total_length"] - width
    steps = case["denoising_steps"]
    policy, settings = {
        "low_confidence_static": (policies.TopConfidence(), {"steps": steps}),
        "low_confidence_dynamic": (
            policies.Dynamic(),
            {"threshold": case["threshold"], "steps": steps},
        ),
        "sequential": (policies.LeftToRight(), {"steps": steps}),
    }[case["strategy"]]
    out = rollout(
        *models["sdar"],
        policy,
        policy.params(**settings),
        Prompts(prompt, np.ones(prompt.shape, bool)),
        row_keys(jax.random.key(0), 1),
        RolloutSettings(
            gen_length=-(-length // block) * block,
            block_length=block,
            stop_ids=tuple(case["stop_ids"] or ()),
            cache=cache,
            record=True,
        ),
    )
    np.testing.assert_array_equal(out.tokens[:, :length], arrays[f"{name}.sequences"][:, width:])
    np.testing.assert_array_equal(out.step_map[:, :length], arrays[f"{name}.step_map"][:, width:])
    assert out.step_map[:, :length].max() + 1 == case["denoise_forwards"]
    # Where the prompt ends within a block, ours goes on for one block more than the record.
    active = out.records.active[:, 0]
    inside = active & (out.records.obs.block_start[:, 0] < length)
    assert inside.sum() == case["denoise_forwards"]
    if cache is None:
        return
    # The record's cache writes: one for the prompt, and one for each block that it finished.
    blocks = len(np.unique(out.records.obs.block_start[:, 0][inside]))
    assert case["cache_write_forwards"] == blocks + 1
    assert case["nfe"] == inside.sum() + blocks + 1
    assert out.by_kind.full == 1
    if length % block == 0:
        assert inside.sum() == out.nfe
        assert out.by_kind.full + out.by_kind.cached + 1 == case["nfe"]
