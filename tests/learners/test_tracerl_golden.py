"""Traces, rows, advantages and losses of the public TraceRL code."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unmask.learners.advantages import group_z_scores, outcome_rewards, trace_gae
from jax_unmask.learners.losses import (
    clipped_objective,
    clipped_value_loss,
    kl_estimate,
    token_weights,
)
from jax_unmask.learners.states import merged_steps, trainable_tokens
from jax_unmask.recipes.tracerl import GroupFilter

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "tracerl"
CASES = {case["name"]: case for case in json.loads((FIXTURES / "meta.json").read_text())["cases"]}
ARRAYS = load_file(FIXTURES / "cases.safetensors")


merged = jax.jit(merged_steps, static_argnums=1)
gae = jax.jit(trace_gae)


def cases(prefix: str) -> list[str]:
    return [name for name in CASES if name.startswith(prefix)]


def arrays(name: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(f"{name}."): value
        for key, value in ARRAYS.items()
        if key.startswith(f"{name}.")
    }


def prepared(name: str, block_size: int | None):
    """Response tokens, their groups, the time of the groups and the trained tokens."""
    case, data = CASES[name], arrays(name)
    tokens = data["input_ids"][:, case["prompt_length"] :]
    blocks = None
    if block_size is not None:
        blocks = jnp.arange(tokens.shape[1])[None] // block_size
    group, time = merged(jnp.asarray(data["step_map"]), case["shrink"], blocks)
    pads = case.get("post_num")
    pads = -1 if pads is None else pads
    trained = trainable_tokens(tokens, data["step_map"], case["pad_id"], pads)
    return tokens, np.asarray(group), np.asarray(time), np.asarray(trained)


def test_shrinking():
    table = CASES["shrink"]["table"]
    for shrink in {entry["k"] for entry in table}:
        entries = [entry for entry in table if entry["k"] == shrink]
        width = max(len(entry["steps"]) for entry in entries)
        # Positions that were never filled go with the last step, so they pad short rows.
        steps = [entry["steps"] + [-1] * (width - len(entry["steps"])) for entry in entries]
        _, last = merged(jnp.asarray(steps), shrink)
        for entry, found in zip(entries, np.asarray(last), strict=True):
            assert found[: len(entry["result"])].tolist() == entry["result"], entry


def test_shrinking_within_blocks():
    for name in cases("gae"):
        _, _, time, _ = prepared(name, CASES[name]["block_size"])
        np.testing.assert_array_equal(time, arrays(name)["shrunk_step_map"])


@pytest.mark.parametrize("name", cases("full_attention_data"))
def test_rows_of_full_attention(name):
    case, data = CASES[name], arrays(name)
    tokens, group, _, trained = prepared(name, None)
    found = []
    for b in range(len(tokens)):
        for n in range(tokens.shape[1]):
            wanted = (group[b] == n) & trained[b]
            if wanted.any():
                noisy = np.where(group[b] >= n, case["mask_id"], tokens[b])
                found.append((noisy, wanted, case["rewards"][b]))
    prompt = case["prompt_length"]
    assert len(found) == len(data["noisy_ids"])
    for (noisy, wanted, reward), ids, mask, expected in zip(
        found, data["noisy_ids"], data["p_mask"], data["reward_rows"], strict=True
    ):
        np.testing.assert_array_equal(noisy, ids[prompt:])
        np.testing.assert_array_equal(wanted, mask[prompt:].astype(bool))
        assert reward == pytest.approx(expected)


@pytest.mark.parametrize("name", cases("policy_data"))
def test_slices_of_block_attention(name):
    case, data = CASES[name], arrays(name)
    tokens, group, _, trained = prepared(name, case["block_size"])
    prompt, length = case["prompt_length"], case["response_length"]
    row = 0
    for b in range(len(tokens)):
        for n in range(case["block_size"]):
            wanted = (group[b] == n) & trained[b]
            if not wanted.any():
                continue
            noisy = np.where(group[b] >= n, case["mask_id"], tokens[b])
            np.testing.assert_array_equal(noisy, data["extended_input_ids"][row, prompt + length :])
            np.testing.assert_array_equal(wanted, data["p_mask"][row, prompt:].astype(bool))
            assert data["reward_rows"][row] == pytest.approx(case["rewards"][b])
            row += 1
    assert row == case["rows"]


@pytest.mark.parametrize("name", cases("gae"))
def test_returns_and_advantages(name):
    case, data = CASES[name], arrays(name)
    _, _, time, trained = prepared(name, case["block_size"])
    prompt = case["prompt_length"]
    in_row = data["p_mask"][:, prompt:].astype(bool)
    values = np.zeros(trained.shape, np.float32)
    for row, b in enumerate(data["seq_ids"]):
        values[b] += np.where(in_row[row], data["old_values"][row, prompt:], 0.0)
    rewards = np.asarray(case["rewards"], np.float32)
    if not case["vector_reward"]:
        rewards = outcome_rewards(jnp.asarray(rewards), time, trained)
    for n, (gamma, lam) in enumerate(case["gamma_lambda"]):
        found = gae(rewards, values, time, trained, gamma, lam)
        for row, b in enumerate(data["seq_ids"]):
            for ours, theirs in ((found.returns, "return"), (found.advantages, "advantage")):
                np.testing.assert_allclose(
                    np.where(in_row[row], ours[b], 0.0),
                    data[f"{theirs}{n}"][row, prompt:],
                    atol=1e-5,
                )


@pytest.mark.parametrize("name", cases("policy_loss"))
def test_policy_loss(name):
    case, data = CASES[name], arrays(name)
    trained = jnp.asarray(data["p_mask"].astype(bool))[:, case["prompt_length"] :]
    new, old = (jnp.asarray(data[key])[:, case["prompt_length"] :] for key in ("logp", "old_logp"))
    advantage = jnp.asarray(data["advantage"])
    if advantage.ndim == 1:
        advantage = jnp.broadcast_to(advantage[:, None], trained.shape)
    else:
        advantage = advantage[:, case["prompt_length"] :]
    ratio = jnp.clip(new - old, -10.0, 10.0)
    weight = token_weights(trained, "length")
    for setting in case["settings"]:
        kl = kl_estimate(ratio, "k3" if setting["k3"] else "k1")
        per_token = setting["beta"] * kl - clipped_objective(
            ratio, jnp.zeros_like(ratio), advantage, setting["eps"]
        )
        loss = jnp.mean(jnp.sum(weight * per_token, axis=-1))
        assert float(loss) == pytest.approx(setting["loss"], abs=2e-6)


def test_value_loss():
    case, data = CASES["value"], arrays("value")
    trained = jnp.asarray(data["p_mask"].astype(bool))
    loss = clipped_value_loss(
        *(jnp.asarray(data[key]) for key in ("values", "old_values", "returns")), case["eps"]
    )
    weight = jnp.where(trained, 1.0 / case["response_length"], 0.0)
    assert float(jnp.mean(jnp.sum(weight * loss, axis=-1))) == pytest.approx(case["loss"], rel=1e-5)


def test_z_scores():
    for entry in CASES["z_score"]["table"]:
        correct = jnp.asarray(entry["correct"], jnp.float32)
        found = group_z_scores(correct, len(entry["correct"]))
        np.testing.assert_allclose(found.advantages, entry["rewards"], atol=1e-6)


def test_kept_groups():
    accuracy = np.asarray([0.0, 1 / 6, 0.2, 4 / 5, 0.81, 1.0], np.float32)
    assert GroupFilter(0.2, 0.8).keeps(accuracy).tolist() == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
