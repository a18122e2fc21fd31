"""Prompts padded to one of a few lengths."""

import numpy as np

from jax_unmask.rollout import Prompts, by_length, trimmed
from jax_unmask.runtime.placement import Placement


def padded(*lengths, width=10):
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    return Prompts(tokens=np.where(mask, np.arange(1, width + 1), 0), mask=mask)


def test_every_prompt_goes_to_the_shortest_length_that_holds_it():
    mask = padded(4, 10, 5, 1, 7, 4).mask
    found = by_length(mask, (7, 4, 12))
    assert [(width, list(members)) for width, members in found] == [
        (4, [0, 3, 5]),
        (7, [2, 4]),
        (10, [1]),
    ]
    assert [width for width, _ in by_length(mask, ())] == [10]


def test_a_batch_is_as_long_as_its_longest_prompt_needs():
    prompts = trimmed(padded(3, 5, 1), (4, 6, 8), Placement())
    assert prompts.tokens.shape == (3, 6)
    np.testing.assert_array_equal(prompts.mask.sum(axis=1), [3, 5, 1])
    assert prompts.tokens[1].tolist() == [0, 6, 7, 8, 9, 10]
    assert trimmed(padded(3, 9), (4, 6), Placement()).tokens.shape == (2, 10)
