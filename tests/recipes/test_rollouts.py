"""Rollouts in batches: the same rows, and checks that run beside the next batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jax_unmask import policies
from jax_unmask.denoisers import Denoiser, init_params
from jax_unmask.environment.bundle import Bundle
from jax_unmask.recipes.rollouts import Rollouts
from jax_unmask.rollout import Prompts, RolloutSettings
from jax_unmask.runtime.placement import Placement

EXAMPLES = [{"number": number} for number in range(4)]


class Words:
    """Stands for a tokenizer."""

    def decode_batch(self, tokens):
        return [" ".join(map(str, row)) for row in np.asarray(tokens)]


class Slow:
    """A task whose checks are slow: notes what it is asked, and when."""

    name = "slow"

    def __init__(self, events):
        self.events, self.seen = events, []

    def start_checks(self, examples, responses):
        self.events.append("begin")
        self.seen += zip(examples, responses, strict=True)

        def scores():
            self.events.append("wait")
            return [float(each["number"]) for each in examples]

        return scores

    def unasked(self, *_):
        raise NotImplementedError

    source = prompt = target = check = check_batch = unasked


@dataclasses.dataclass(frozen=True)
class Noted(Placement):
    events: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def fetch(self, tree):
        self.events.append("fetch")
        return super().fetch(tree)


@pytest.fixture(scope="module")
def made():
    """Results of rollouts in 1, 2 and 4 batches, with the events of each."""
    config = tiny.denoiser_config()
    params = jax.tree.map(lambda leaf: 1.7 * leaf, init_params(config, jax.random.key(1)))
    policy, policy_params = policies.parse_policy("threshold:threshold=0.3")
    rng = np.random.default_rng(0)
    # Longest prompts of 3 and 5 tokens in the two halves; a budget of 8, for which 5 does.
    lengths = np.asarray([2, 3, 5, 4])
    prompts = Prompts(
        rng.integers(0, 10, (4, 8)).astype(np.int32), np.arange(8) >= 8 - lengths[:, None]
    )
    found = {}
    for batches in (1, 2, 4):
        events: list[str] = []
        task = Slow(events)
        bundle = Bundle(Denoiser(config), params, Words(), task, "tiny", Noted(events=events))
        rollouts = Rollouts(bundle, batches, buckets=(3, 5))
        trajectories = rollouts.start(
            *(params, policy, policy_params, prompts, 2, jax.random.key(7)),
            RolloutSettings(8, 4, temperature=1.0, slots=2),
        )
        assert events == []  # Nothing is waited for.
        fetched = rollouts.fetch(trajectories, EXAMPLES, 2)
        found[batches] = (fetched, task.seen, events)
    return found


@pytest.mark.parametrize("batches", [2, 4])
@pytest.mark.thorough
def test_batches_change_no_row(made, batches):
    (one, asked, _), (several, asked_in_batches, _) = made[1], made[batches]
    for name in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name))
    assert asked_in_batches == asked
    assert [example["number"] for example, _ in asked] == [0, 0, 1, 1, 2, 2, 3, 3]
    # Rows of one prompt are drawn apart.
    assert (one.tokens[::2] != one.tokens[1::2]).any()
    assert one.nfe.min() < one.nfe.max()


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_checks_of_a_batch_begin_before_the_next_is_waited_for(made, batches):
    fetched, _, events = made[batches]
    assert events == ["fetch", "begin"] * batches
    np.testing.assert_array_equal(fetched.scores(), jnp.asarray([0, 0, 1, 1, 2, 2, 3, 3], float))
    assert events[2 * batches :] == ["wait"] * batches
    del events[2 * batches :]
