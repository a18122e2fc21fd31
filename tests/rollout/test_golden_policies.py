"""Rollouts of the published policy networks with their randomness injected (LLaDA, Dream).

The recording ran whole batches in lock step, with two defects that the comparison steps around:
rows that were done with their block had position 0 of it rewritten, and a threshold fallback fired
only if no row of the batch passed. Ours is row-wise. Rows that a rewriting spoiled are therefore
compared in their first block; all others, and those of batch-1 cases, entirely.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unmask import policies
from jax_unmask.policies import distributions, heuristics
from jax_unmask.policies.base import Action, Needs
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys

BERNOULLI = [
    "bern_full_ctx",
    "bern_block_ctx",
    "bern_argmax_temp",
    "bern_argmax_blocks",
    "bern_argmax_topp",
    "bern_argmax_b1",
    "bern_argmax_topp_b1",
    "hidden_bern_argmax",
    "dream_bern_argmax",
    "dream_bern_argmax_b1",
]
DPLS = ["dpls_full", "dpls_blocks", "dpls_b1"]


@dataclasses.dataclass(frozen=True)
class Injected:
    """A learned policy whose random numbers are recorded ones: tables [B, T, ...] by own step."""

    policy: policies.LearnedPolicy

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def __call__(self, params: Any, obs: Any, keys: Any) -> Action:
        policy, inner = self.policy, params["policy"]
        rows = jnp.arange(obs.step.shape[0])
        logits = policy.logits(inner, obs)
        table = {name: value[rows, obs.step] for name, value in params["tables"].items()}
        if policy.distribution == "dpls":
            fill, rank = distributions.dpls_sample(
                logits, obs.legal, table["first"], table["gumbel"], policy.dpls_stop_logit
            )
            action = Action(fill=fill, log_prob=jnp.zeros(rows.shape), rank=rank)
        else:
            fill = distributions.bernoulli_sample(logits, obs.legal, table["uniform"], 1.0)
            if policy.distribution == "bernoulli_argmax":
                fill = distributions.with_argmax_fallback(fill, logits, obs.legal)
            action = Action(fill=fill, log_prob=jnp.zeros(rows.shape))
        return action.replace(log_prob=policy.log_prob(inner, obs, action))


@pytest.fixture(scope="module")
def recorded(fixtures_dir):
    folder = fixtures_dir / "policy" / "rollouts"
    meta = json.loads((folder / "meta.json").read_text())
    return load_file(folder / "cases.safetensors"), {c["name"]: c for c in meta["cases"]}


def case_arrays(arrays, name):
    return {key.partition(".")[2]: v for key, v in arrays.items() if key.startswith(f"{name}.")}


def own_steps(case, arrays):
    """Recorded step index of each row's own steps: the steps in which it had a candidate."""
    had = arrays["sampling_masks"].astype(bool).any(axis=-1)
    return [np.flatnonzero(row) for row in had]


def build(case, fixtures_dir):
    policy, params = policies.load_policy(fixtures_dir / "policy" / case["policy"])
    kind = case["sampling_mode"].replace("-", "_")
    policy = dataclasses.replace(
        policy,
        distribution=kind,
        context="full" if case["full_context"] else "block",
        dpls_stop_logit=case["dpls_stop_logit"] or 0.0,
    )
    return policy, params | {"temperature": jnp.float32(case["temperature_policy"])}


def run(models, case, data, policy, params, tables):
    settings = RolloutSettings(
        gen_length=case["gen_length"], block_length=case["block_length"], record=True
    )
    prompt = data["prompt"]
    prompts = Prompts(prompt, np.ones(prompt.shape, bool))
    keys = row_keys(jax.random.key(0), prompt.shape[0])
    tables = {name: jnp.asarray(value) for name, value in tables.items()}
    params = {"policy": params, "tables": tables}
    return rollout(*models[case["model"]], Injected(policy), params, prompts, keys, settings)


def table_by_own_step(case, data, values, block_wide):
    """Re-indexes recorded tables [B, T, W] by each row's own step: [B, L, ...]."""
    length, block = case["gen_length"], case["block_length"]
    steps = own_steps(case, data)
    out = np.zeros((len(steps), length, *((length,) if block_wide else values.shape[2:])))
    masks = data["sampling_masks"].astype(bool)
    for row, own in enumerate(steps):
        finished = 0
        for k, t in enumerate(own):
            if not block_wide or values.shape[2] == length:
                out[row, k] = values[row, t]
                continue
            start = finished * block
            out[row, k, start : start + block] = values[row, t]
            samples = data["samples"][row, t]
            taken = samples.astype(bool)
            if case["sampling_mode"] == "dpls":  # Drawn positions in order, padded with -1.
                taken = np.isin(np.arange(samples.size), samples)
            finished += not (masks[row, t] & ~taken).any()
    return out


@pytest.mark.parametrize("name", BERNOULLI)
@pytest.mark.default_cases("bern_full_ctx", "bern_argmax_blocks")
def test_bernoulli(models, recorded, fixtures_dir, name):
    arrays, cases = recorded
    case, data = cases[name], case_arrays(arrays, name)
    policy, params = build(case, fixtures_dir)
    uniform = table_by_own_step(case, data, data["uniform"], block_wide=True)
    out = run(models, case, data, policy, params, {"uniform": uniform.astype(np.float32)})
    check(case, data, out)


@pytest.mark.parametrize("name", DPLS)
@pytest.mark.default_cases("dpls_blocks")
def test_dynamic_plackett_luce(models, recorded, fixtures_dir, name):
    arrays, cases = recorded
    case, data = cases[name], case_arrays(arrays, name)
    policy, params = build(case, fixtures_dir)
    length = case["gen_length"]
    first = table_by_own_step(case, data, data["first_choice"][..., None], False)[..., 0]
    gumbel = table_by_own_step(case, data, data["gumbel"], False)
    if gumbel.shape[-1] <= length:  # Block context: shift choices and noise to the row's block.
        wide = np.zeros((*gumbel.shape[:2], length + 1))
        blocks = table_by_own_step(case, data, np.ones(data["sampling_masks"].shape), True)
        for row, step in np.ndindex(*gumbel.shape[:2]):
            inside = np.flatnonzero(blocks[row, step])
            if inside.size:
                wide[row, step, inside] = gumbel[row, step, :-1]
                wide[row, step, -1] = gumbel[row, step, -1]
                first[row, step] += inside[0]
        gumbel = wide
    tables = {"first": first.astype(np.int32), "gumbel": gumbel.astype(np.float32)}
    check(case, data, run(models, case, data, policy, params, tables))


def check(case, data, out):
    width, block = data["prompt"].shape[1], case["block_length"]
    final, tokens = data["sequences"][:, width:], np.asarray(out.tokens)
    same = (tokens == final).all(axis=1)
    # Each rewritten token spoils one row at most: that token, and what was decoded after it.
    assert (~same).sum() <= case["overwritten_tokens"]
    np.testing.assert_array_equal(tokens[:, 1:block], final[:, 1:block])
    np.testing.assert_array_equal(np.asarray(out.nfe)[same], data["steps_taken"][same])
    still_masked = (tokens == case["mask_id"]).any(axis=1)
    np.testing.assert_array_equal(still_masked, data["still_masked"].astype(bool))
    log_prob = np.asarray(out.records.action.log_prob)
    in_first_block = np.asarray(out.records.active & (out.records.obs.block_start == 0))
    for row, own in enumerate(own_steps(case, data)):
        steps = int(out.nfe[row]) if same[row] else int(in_first_block[: len(own), row].sum())
        np.testing.assert_allclose(
            log_prob[:steps, row], data["loglik"][row, own[:steps]], atol=2e-4, err_msg=str(row)
        )


@pytest.mark.parametrize("name", ["expert_threshold_b1", "threshold_b1", "lowconf_k2"])
def test_heuristics(models, recorded, name):
    arrays, cases = recorded
    case, data = cases[name], case_arrays(arrays, name)
    prompt = data["prompt"]
    policy, params = heuristics.TopConfidence(), {"tokens_per_step": 2}
    if name != "lowconf_k2":
        threshold = np.ravel(case["threshold"]).astype(np.float32)[0]
        policy, params = heuristics.Threshold(), {"threshold": threshold}
    out = rollout(
        *models[case["model"]],
        policy,
        policy.params(**params),
        Prompts(prompt, np.ones(prompt.shape, bool)),
        row_keys(jax.random.key(0), prompt.shape[0]),
        RolloutSettings(gen_length=case["gen_length"], block_length=case["block_length"]),
    )
    np.testing.assert_array_equal(out.tokens, data["sequences"][:, prompt.shape[1] :])
    np.testing.assert_array_equal(out.nfe, data["steps_taken"])
