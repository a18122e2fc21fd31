"""Operations of training steps: what is counted, and that planner and training count alike."""

import dataclasses

import pytest

from jax_unmask import denoisers, policies, recipes
from jax_unmask.denoisers import families
from jax_unmask.recipes.tracerl import TraceRl, build_settings
from jax_unmask.rollout import RolloutSettings, flops, parse_cache

SDAR_8B = families.published_config("JetLM/SDAR-8B-Chat")


@pytest.mark.parametrize("cache", ["block", "prefix", "none"])
def test_forwards_that_read_a_cache_count_what_they_compute(cache):
    family = "sdar" if cache == "block" else "llada"
    block = 4 if cache == "block" else None
    denoiser = dataclasses.replace(SDAR_8B, family=family, attention_block=block)
    settings = RolloutSettings(512, 4, cache=parse_cache(cache))
    policy, _ = policies.parse_policy("threshold:threshold=0.9")
    found = flops.row_flops(denoiser, policy, settings, 256, nfe=200)
    plain = dataclasses.replace(settings, cache=None)
    whole = flops.row_flops(denoiser, policy, plain, 256, nfe=200)
    if cache == "none":
        assert found == whole
    else:
        each = flops.rollout_flops(denoiser, settings, 256, 4)
        full, read = (1, 200 + 128) if cache == "block" else (128, 200 - 128)
        assert found == full * each.full + read * each.cached
        assert found < whole


def test_planner_and_training_count_alike():
    config = recipes.config("tracerl")
    config.rollout.cache, config.rollout.block_length = "block", 4
    config = recipes.read(config)
    planned = TraceRl.work(config, SDAR_8B, nfe=200)
    recipe = TraceRl.__new__(TraceRl)
    recipe._config, recipe._group = config, config.rollout.group_size
    recipe._policy, _ = policies.parse_policy(config.rollout.policy)
    recipe._settings = build_settings(config, SDAR_8B, (1,))
    recipe._bundle = type("Bundle", (), {"denoiser": denoisers.Denoiser(SDAR_8B)})
    rows = config.rollout.prompts_per_step * config.rollout.group_size
    length = config.rollout.gen_length
    states = -(-200 / config.learner.shrink // (length // 4))
    found = recipe.flops(
        {"rounds": 1, "nfe": 200, "states": rows * states, "trained_tokens": rows * length}
    )
    assert found == pytest.approx(planned.rollout + planned.update)
