"""Decodings of the samplers with caches, token by token (Fast-dLLM for LLaDA and Dream; SDAR)."""

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


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Several policies, of which the parameters choose one: their cases share a program."""

    policies: tuple[policies.Policy, ...]

    @property
    def needs(self) -> Needs:
        return self.policies[0].needs

    def params(self, chosen, **settings):
        each = [
            policy.params(**(settings if index == chosen else {}))
            for index, policy in enumerate(self.policies)
        ]
        return {"each": each, "chosen": jnp.int32(chosen)}

    def __call__(self, params, obs, keys):
        actions = [
            policy(own, obs, keys)
            for policy, own in zip(self.policies, params["each"], strict=True)
        ]
        fill = jnp.stack([action.fill for action in actions])[params["chosen"]]
        return Action(fill=fill, log_prob=actions[0].log_prob)


FAST_RULES = OneOf(
    (policies.TopConfidence(), policies.Threshold(), policies.Factor(reference_compat=True))
)
SDAR_RULES = OneOf((policies.TopConfidence(), policies.Dynamic(), policies.LeftToRight()))
LONGEST = 24  # Canvas.
WIDTH = 11  # Of the longest prompt: with one width, cases share a program.


def padded(prompt):
    missing = WIDTH - prompt.shape[1]
    mask = np.arange(WIDTH)[None] >= missing
    return Prompts(np.pad(prompt, ((0, 0), (missing, 0))), mask)


def chosen_policy(case):
    """The policy of a case, and its settings."""
    blocks = case["gen_length"] // case["block_length"]
    if case.get("alg") == "entropy":
        policy = FirstOfBlock(policies.Entropy(reference_compat=True))
        return policy, policy.policy.params(steps=case["steps"] // blocks)
    if case["model"] == "dream":
        policy = policies.Threshold()
        return FirstOfBlock(policy), policy.params(threshold=case["threshold"])
    if case["threshold"] is not None:
        return FAST_RULES, FAST_RULES.params(1, threshold=case["threshold"])
    if case["factor"] is not None:
        return FAST_RULES, FAST_RULES.params(2, factor=case["factor"])
    return FAST_RULES, FAST_RULES.params(0, steps=case["steps"] // blocks)


FAST = ["fastdllm_quota", "fastdllm_threshold", "fastdllm_threshold_full", "fastdllm_factor"]
CACHED = [*FAST, "fastdream_threshold", "fastdream_entropy"]


@pytest.mark.parametrize(
    "name",
    [f"{name}_none" for name in FAST]
    + [f"{name}_{kind}" for name in CACHED for kind in ("prefix", "dual")],
)
@pytest.mark.default_cases(
    "fastdllm_quota_none",
    "fastdllm_threshold_prefix",
    "fastdllm_threshold_dual",
    "fastdllm_quota_dual",
    "fastdllm_factor_dual",
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
        padded(prompt),
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
@pytest.mark.default_cases("block-sdar_static_b8_partial", "block-sdar_dynamic_b8")
def test_sdar(models, recorded, name, cache):
    """The record's canvas ends with a block of the text; ours has the longest's length.

    Blocks behind are invisible, so what the record has must be the same. It also writes the keys
    and values of the last block, which nobody reads; ours does not.
    """
    arrays, cases = recorded
    case, prompt = cases[name], arrays[f"{name}.prompt"]
    width, block = prompt.shape[1], case["block_length"]
    length = case["total_length"] - width
    chosen = ("low_confidence_static", "low_confidence_dynamic", "sequential").index(
        case["strategy"]
    )
    settings = {"steps": case["denoising_steps"]}
    settings |= {"threshold": case["threshold"]} if chosen == 1 else {}
    out = rollout(
        *models["sdar"],
        SDAR_RULES,
        SDAR_RULES.params(chosen, **settings),
        padded(prompt),
        row_keys(jax.random.key(0), 1),
        RolloutSettings(
            gen_length=LONGEST,
            block_length=block,
            stop_ids=tuple(case["stop_ids"] or ()),
            cache=cache,
            record=True,
        ),
    )
    np.testing.assert_array_equal(out.tokens[:, :length], arrays[f"{name}.sequences"][:, width:])
    np.testing.assert_array_equal(out.step_map[:, :length], arrays[f"{name}.step_map"][:, width:])
    assert out.step_map[:, :length].max() + 1 == case["denoise_forwards"]
    # Ours may go on for more blocks than the record.
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
    if length == LONGEST:
        assert inside.sum() == out.nfe
        assert out.by_kind.full + out.by_kind.cached + 1 == case["nfe"]
