"""Seconds of a sequence in each layout, from shapes."""

import dataclasses

import jax.numpy as jnp
import pytest

from jax_unmask import recipes
from jax_unmask.denoisers.families import published_config
from jax_unmask.recipes import layout
from jax_unmask.recipes.speed import seconds_per_sequence, useful_share
from jax_unmask.rollout import RolloutSettings, parse_cache
from jax_unmask.rollout.flops import rollout_flops
from jax_unmask.runtime import accelerators

LLADA = dataclasses.replace(published_config("GSAI-ML/LLaDA-8B-Instruct"), dtype=jnp.bfloat16)


def seconds(devices, layout, cache="none", slots=128):
    device, _ = accelerators.parse(devices)
    settings = RolloutSettings(
        gen_length=256, block_length=32, slots=slots, cache=parse_cache(cache)
    )
    return seconds_per_sequence(LLADA, settings, 200, 128, 80, device, layout)


def test_one_device_computes():
    device, _ = accelerators.parse("h100x1")
    settings = RolloutSettings(gen_length=256, block_length=32)
    each = rollout_flops(LLADA, settings, 200, 32).full
    assert seconds("h100x1", (1, 1, 1)) == pytest.approx(80 * each / device.flops)


@pytest.mark.parametrize(
    ("settings", "name", "saved"),
    [
        ({"gen_length": 256, "block_length": 4, "cache": parse_cache("block")}, "h100x1", "full"),
        ({"gen_length": 256, "block_length": 4}, "h100x1", "full"),
        ({"gen_length": 32, "block_length": 4}, "v5e-1", "full"),
        ({"gen_length": 64, "block_length": 4}, "v5e-1", None),
    ],
)
def test_rows_of_a_prompt_share_a_forward(settings, name, saved):
    device, _ = accelerators.parse(name)
    alone, together = (RolloutSettings(**settings, slots=128, prompt_rows=rows) for rows in (1, 8))
    took, shared = (
        seconds_per_sequence(LLADA, each, 784, 128, 80, device, (1, 1, 1))
        for each in (alone, together)
    )
    first = getattr(rollout_flops(LLADA, alone, 784, 4), saved) / device.flops if saved else 0
    assert took - shared == pytest.approx(7 / 8 * first)


def test_layouts_are_compared_for_the_groups_of_a_config():
    config = recipes.config("tracerl")
    config.model.path = "JetLM/SDAR-8B-Chat"
    config.rollout.update(cache="block", block_length=4, slots=256, group_size=32)
    settings = recipes.read(config)
    shape, (device, _) = layout.denoiser_shape(settings), accelerators.parse("h100x1")
    [(one, took)] = layout.compare_rollouts(settings, shape, device, 80)
    rolled = settings.rollout.settings(())
    assert rolled.prompt_rows == 32
    assert took == seconds_per_sequence(shape, rolled, 512, 256, 80, device, one)


def test_order_of_layouts_is_that_of_compiled_programs():
    """The figures are those of docs/scaling/chips.md, of programs compiled for these chips."""
    gathered, split = (1, 16, 1), (4, 1, 4)
    assert seconds("v5e-16", gathered, "dual") > 2 * seconds("v5e-16", split, "dual")
    assert seconds("v6e-16", gathered, "dual") > 4 * seconds("v6e-16", split, "dual")
    whole, halves = seconds("v6e-16", (16, 1, 1)), seconds("v6e-16", (8, 1, 2))
    assert whole == pytest.approx(0.037, rel=0.1)
    assert whole < halves < seconds("v6e-16", gathered)


def test_few_slots_read_the_weights_more_often():
    whole = seconds("v6e-16", (16, 1, 1))
    assert seconds("v6e-16", (16, 1, 1), slots=16) > 1.2 * whole
    # By default there are enough.
    assert seconds("v6e-16", (16, 1, 1), slots=0) == pytest.approx(whole, rel=0.01)


def test_useful_forwards():
    assert useful_share(8, 1, 1, 80) == 1  # Nobody waits.
    all_at_once, few, shards = (
        useful_share(128, 128, 1, 80),
        useful_share(128, 7, 1, 80),
        useful_share(8, 1, 16, 80),
    )
    assert all_at_once == pytest.approx(1 / (1 + 2.5 * 0.4), abs=0.03)  # Waiting for the longest.
    assert all_at_once < shards < few
    assert few > 0.95
