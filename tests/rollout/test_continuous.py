"""Rows that are replaced while others run get what a rollout gives them."""

import jax
import numpy as np
import pytest

from jax_unmask.policies import heuristics
from jax_unmask.rollout import RolloutSettings, rollout
from jax_unmask.rollout.continuous import ContinuousRollout, answer_keys
from jax_unmask.rollout.trajectory import Prompts

WIDTH, LENGTH, COUNT = 6, 8, 14


def requests():
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 20, 1 + k % WIDTH).tolist() for k in range(COUNT)]
    return prompts, random.random(COUNT).astype(np.float32)


def alone(model, settings, prompts, thresholds):
    """The results of one rollout of all of them."""
    policy = heuristics.Threshold()
    tokens, mask = np.ones((COUNT, WIDTH), np.int32), np.zeros((COUNT, WIDTH), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, WIDTH - len(prompt) :], mask[row, WIDTH - len(prompt) :] = prompt, True
    seeds = np.arange(COUNT, dtype=np.uint32)
    keys = answer_keys(seeds, np.zeros(COUNT, np.int32))
    from jax_unmask.policies import PerRow

    out = rollout(
        *model, policy, {"threshold": PerRow(thresholds)}, Prompts(tokens, mask), keys, settings
    )
    return jax.device_get(out)


@pytest.mark.parametrize(
    ("temperature", "cache", "waiting"), [(0.0, None, 3), (1.0, None, 0), (0.0, "dual", 3)]
)
@pytest.mark.default_cases("0.0-None-3")
def test_any_mix_gives_what_a_rollout_gives(random_model, temperature, cache, waiting):
    from jax_unmask.rollout import parse_cache

    settings = RolloutSettings(
        gen_length=LENGTH,
        block_length=4,
        temperature=temperature,
        cache=parse_cache(cache or "none"),
    )
    prompts, thresholds = requests()
    expected = alone(random_model, settings, prompts, thresholds)
    policy = heuristics.Threshold()
    running = ContinuousRollout(
        *random_model,
        policy,
        policy.params(),
        settings,
        prompt_length=WIDTH,
        slots=3,
        waiting=waiting,
    )
    free, left, owner, steps = list(range(running.rows)), list(range(COUNT)), {}, 0
    cancelled, seen = {4, 9}, {}
    while left or owner:
        # One or two join at a time, so that rows begin at different steps of the others.
        for _ in range(min(1 + steps % 2, len(free), len(left))):
            number, row = left.pop(0), free.pop(0)
            owner[row] = number
            settings_of_row = {"threshold": thresholds[number]}
            running.put(row, prompts[number], seed=number, settings=settings_of_row)
        places = running.progress(running.advance(1 + steps % 3))
        steps += 1
        for row, number in list(owner.items()):
            if places[row].is_done:
                seen[number] = places[row]
                free.append(row)
                del owner[row]
            elif number in cancelled and places[row].nfe:
                running.stop(row)
                cancelled.remove(number)
    assert sorted(seen) == list(range(COUNT))
    for number, place in seen.items():
        if number in (4, 9) and not (place.step_map >= 0).all():
            continue  # Was cancelled.
        np.testing.assert_array_equal(place.tokens, expected.tokens[number])
        np.testing.assert_array_equal(place.step_map, expected.step_map[number])
        np.testing.assert_allclose(place.confidence, expected.confidence[number], rtol=1e-5)
        assert place.nfe == expected.nfe[number]
