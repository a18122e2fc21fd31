"""Losses, entropies and gradients of the public PyTorch code on its own rollouts."""

import json
import pathlib

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from jax_unmask.learners.experts import ExpertSettings
from jax_unmask.learners.policy_grpo import PolicyLearner
from jax_unmask.policies.base import Action, Observation
from jax_unmask.policies.checkpoint import load_policy
from jax_unmask.policies.learned import LearnedPolicy
from jax_unmask.rollout.trajectory import Records

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "policy"
CASES = json.loads((FIXTURES / "loss" / "meta.json").read_text())["cases"]
OPTIMIZER = optax.sgd(1.0)  # One object: equal learners share their programs.
SETTINGS = [(case, setting) for case in CASES for setting in range(len(case["results"]))]


def recorded(name: str, old_log_prob: np.ndarray, ordered: bool) -> Records:
    """A recorded rollout [B, T, ...] as the records [T, B, ...] of ours."""
    rollouts = load_file(FIXTURES / "rollouts" / "cases.safetensors")
    masked, legal, samples, confidence, time = (
        np.moveaxis(rollouts[f"{name}.{key}"], 1, 0)
        for key in (
            "policy_mask",
            "sampling_masks",
            "samples",
            "policy_confidences",
            "policy_timestep",
        )
    )
    legal = legal.astype(bool)
    length = masked.shape[-1]
    rank = None
    if ordered:
        order = np.where(samples >= 0, np.arange(1, length + 1), 0)
        rank = np.zeros_like(order)
        for t, b, n in np.argwhere(samples >= 0):
            rank[t, b, samples[t, b, n]] = order[t, b, n]
        fill = rank > 0
    else:
        fill = samples.astype(bool)
    step = np.round(time[..., 0] * length).astype(np.int32)
    zero = np.zeros_like(step)
    obs = Observation(
        candidate=np.zeros(masked.shape, np.int32),
        confidence=confidence[..., 0],
        top_probs=confidence,
        masked=masked.astype(bool),
        legal=legal,
        step=step,
        step_in_block=zero,
        block_start=zero,
        block_length=length,
    )
    action = Action(fill=fill & legal, log_prob=old_log_prob.T, rank=rank)
    return Records(obs=obs, action=action, active=legal.any(axis=-1))


@pytest.mark.parametrize(
    ("case", "setting"), SETTINGS, ids=[f"{case['name']}-{n}" for case, n in SETTINGS]
)
@pytest.mark.default_cases(
    *(f"{name}-{n}" for name in ("loss_dpls", "loss_bernoulli_expert") for n in range(3))
)
def test_loss_entropy_and_gradient(case, setting):
    expected = case["results"][setting]
    arrays = load_file(FIXTURES / "loss" / "cases.safetensors")
    network, params = load_policy(FIXTURES / case["policy"])
    ordered = case["sampling_mode"] == "dpls"
    policy = LearnedPolicy(
        network=network.network,
        distribution=case["sampling_mode"],
        dpls_stop_logit=case["dpls_stop_logit"],
    )
    rollouts = [
        recorded(name, arrays[f"{case['name']}.old_logps{n}"], ordered)
        for n, name in enumerate(case["rollouts"])
    ]
    sizes = [records.active.shape[1] for records in rollouts]
    expert = case["es_thresholds"] is not None
    learner = PolicyLearner(
        policy=policy,
        optimizer=OPTIMIZER,
        chunk_size=3,  # The references' is 3, or all at once: sums over chunks are the same.
        group_size=sizes[0],
        expert=ExpertSettings(count=sizes[1] if expert else 0),
    )
    # The two rollouts of the expert case differ in canvas length, so they cannot form one batch;
    # the loss is a mean over rows, so theirs may be averaged.
    advantages = np.split(arrays[f"{case['name']}.advantages"], np.cumsum(sizes)[:-1])
    loss, entropies, gradient = 0.0, [], None
    for n, records in enumerate(rollouts):
        is_expert = jnp.ones(sizes[n], bool) if expert and n == 1 else None
        clip = jnp.float32(expected["epsilon"])
        grads, metrics = gradients.of_policy(
            learner, params, records, advantages[n], is_expert, clip
        )
        share = sizes[n] / sum(sizes)
        loss += share * float(metrics["loss"])
        if setting == 0:
            entropy = jax.jit(policy.entropy)(params, records.obs).sum()
            entropies.append(float(entropy / records.obs.legal.sum()))
        scaled = optax.tree.scale(share, grads)
        gradient = scaled if gradient is None else optax.tree.add(gradient, scaled)

    assert loss == pytest.approx(expected["loss"], abs=2e-6)
    assert float(optax.tree.norm(gradient)) == pytest.approx(expected["global_grad_norm"], rel=1e-5)
    if setting == len(case["results"]) - 1:
        np.testing.assert_allclose(
            gradient["output"]["kernel"].T,
            arrays[f"{case['name']}.grad_output_proj"],
            rtol=1e-4,
            atol=1e-6,
        )
    # In chunks the reference averages the entropies of chunks whatever their size, and for dynamic
    # Plackett-Luce it gives NaN: only the first setting of the Bernoulli cases means anything.
    if setting == 0 and not ordered:
        assert np.mean(entropies) == pytest.approx(expected["entropy"], abs=1e-5)
