"""Decodings of the public samplers, reproduced token by token (LLaDA, no cache)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.policies import heuristics
from jax_unmask.policies.base import Action, Needs
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys


@pytest.fixture
def model(models):
    return models["llada"]


@dataclasses.dataclass(frozen=True)
class GivenScores:
    """Fills a quota of the positions with the largest recorded scores (random remasking)."""

    quota: int

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, params, obs, keys):
        scores = jnp.where(obs.legal, params[obs.step, jnp.arange(obs.step.shape[0])], -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-scores, axis=-1), axis=-1)
        return Action(fill=obs.legal & (rank < self.quota), log_prob=jnp.zeros(scores.shape[0]))


def decode(model, arrays, case, policy, params):
    name = case["name"]
    prompt = arrays[f"{name}.prompt"]
    mask = arrays.get(f"{name}.attention_mask", np.ones_like(prompt)).astype(bool)
    settings = RolloutSettings(
        gen_length=case["gen_length"],
        block_length=case["block_length"],
        guidance=case.get("cfg_scale", 0.0),
    )
    keys = row_keys(jax.random.key(0), prompt.shape[0])
    out = rollout(*model, policy, params, Prompts(prompt, mask), keys, settings)
    width = prompt.shape[1]
    np.testing.assert_array_equal(out.tokens, arrays[f"{name}.sequences"][:, width:])
    np.testing.assert_array_equal(out.step_map, arrays[f"{name}.step_map"][:, width:])
    assert (out.nfe == case["nfe"]).all()
    assert out.forwards == case["nfe"]


@pytest.mark.parametrize(
    "name",
    [
        "llada_lowconf_semi",
        "llada_lowconf_full",
        "llada_lowconf_uneven",
        "llada_lowconf_leftpad",
        "llada_cfg",
    ],
)
@pytest.mark.default_cases("llada_lowconf_semi", "llada_lowconf_leftpad", "llada_cfg")
def test_low_confidence(model, recorded, name):
    """The steps are those of the whole canvas, as in LLaDA's `generate`."""
    arrays, cases = recorded
    policy = heuristics.LowConfidence()
    decode(model, arrays, cases[name], policy, policy.params(steps=cases[name]["steps"]))


@pytest.mark.parametrize("name", ["llada_random_semi", "llada_random_full"])
@pytest.mark.default_cases("llada_random_semi")
def test_random_order(model, recorded, name):
    arrays, cases = recorded
    case = cases[name]
    scores = arrays[f"{name}.rand"][:, :, -case["gen_length"] :]
    quota = case["gen_length"] // case["steps"]
    decode(model, arrays, case, GivenScores(quota), jnp.asarray(scores))
