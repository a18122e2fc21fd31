"""Recorded rollouts are those that are measured."""

import jax
import numpy as np
import pytest

import tiny
from jax_unmask import denoisers, policies
from jax_unmask.evaluation.viewing import record
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.default_cases("1.0")
def test_a_recording_shows_what_was_measured(temperature):
    config = tiny.denoiser_config()
    params = denoisers.init_params(config, jax.random.key(0))
    policy = policies.TopConfidence()
    prompts = Prompts(np.full((3, 2), 4, np.int32), np.ones((3, 2), bool))
    settings = RolloutSettings(gen_length=8, block_length=2, temperature=temperature)
    arguments = (
        *(denoisers.Denoiser(config), params, policy, policy.params(tokens_per_step=1)),
        *(prompts, row_keys(jax.random.key(1), 3), settings),
    )
    measured = rollout(*arguments)
    shown, _ = record(*arguments)
    np.testing.assert_array_equal(shown.tokens, measured.tokens)
    np.testing.assert_array_equal(shown.step_map, measured.step_map)
    assert shown.records is not None
    everywhere = np.asarray(shown.records.obs.confidence)[0] > 0
    assert everywhere.all() == (temperature == 0)
