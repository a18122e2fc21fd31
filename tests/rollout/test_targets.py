"""Rollouts that write a given response: the order is that of the denoiser's probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jax_unmask.denoisers import Denoiser, init_params
from jax_unmask.policies import parse_policy
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys

CONFIG = tiny.denoiser_config()
DENOISER = Denoiser(CONFIG)


def roll_out(params, prompts, **settings):
    policy, policy_params = parse_policy("top_confidence:tokens_per_step=2")
    keys = row_keys(jax.random.key(0), len(prompts.tokens))
    shape = RolloutSettings(8, **({"block_length": 4} | settings))
    return rollout(DENOISER, params, policy, policy_params, prompts, keys, shape)


def test_the_most_probable_targets_come_first():
    params = init_params(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 10, (3, 4)), rng.integers(0, 11, (3, 8))
    prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.ones((3, 4), bool))
    found = roll_out(params, prompts.replace(targets=jnp.asarray(targets, jnp.int32)))
    np.testing.assert_array_equal(found.tokens, targets)
    forward = jax.jit(lambda text: DENOISER.apply({"params": params}, text))
    for b in range(3):
        canvas = np.full(8, CONFIG.mask_token_id)
        for step in range(4):
            text = jnp.asarray(np.concatenate([tokens[b], canvas]))[None]
            probs = jax.nn.softmax(forward(text)[0, 4:], axis=-1)[np.arange(8), targets[b]]
            block = np.arange(8) // 4 == step // 2
            order = np.argsort(-np.where(block & (canvas == 11), probs, -1))[:2]
            assert set(np.flatnonzero(found.step_map[b] == step)) == set(order)
            np.testing.assert_allclose(found.confidence[b, order], probs[order], rtol=1e-4)
            canvas[order] = targets[b, order]


def test_targets_are_for_greedy_rollouts_without_cache():
    params = init_params(CONFIG, jax.random.key(0))
    zeros = jnp.zeros((1, 4), jnp.int32)
    prompts = Prompts(zeros, zeros == 0, targets=jnp.zeros((1, 8), jnp.int32))
    with pytest.raises(ValueError, match=r"temperature=0 and cache=None, not 0\.5"):
        roll_out(params, prompts, temperature=0.5)
    with pytest.raises(ValueError, match=r"not 0\.0 and .prefix."):
        roll_out(params, prompts, cache="prefix")
