"""Values that are read off a finished rollout."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.rollout import Prompts, Trajectory, never_filled
from jax_unmask.rollout.trajectory import Forwards


def test_what_stands_behind_the_end_of_a_text_is_not_missed():
    tokens = np.array([[5, 1, 2, 2], [2, 5, 2, 1]])
    np.testing.assert_array_equal(never_filled(tokens, 2), tokens == 2)
    np.testing.assert_array_equal(
        never_filled(tokens, 2, stop_ids=(1, 9)),
        [[False, False, False, False], [True, False, True, False]],
    )


def test_forwards_cost_what_they_compute():
    canvas = jnp.zeros((2, 6), jnp.int32)
    done = Trajectory(
        prompts=Prompts(canvas[:, :4], canvas[:, :4] == 0),
        tokens=canvas,
        step_map=canvas,
        confidence=canvas * 1.0,
        nfe=jnp.array([3, 6]),
        forwards=jnp.int32(7),
        slots=2,
    )
    np.testing.assert_array_equal(done.cost, [3, 6])
    assert done.executed_cost == 14
    assert done.useful_forward_fraction == pytest.approx(9 / 14)
    done = done.replace(
        by_kind=Forwards(
            full=jnp.array([1, 2]),
            cached=jnp.array([2, 4]),
            full_executed=jnp.int32(3),
            cached_executed=jnp.int32(4),
            full_rows=1,
            full_tokens=10,
            cached_tokens=2,
            length=10,
        )
    )
    np.testing.assert_allclose(done.cost, [1.4, 2.8])
    assert done.executed_cost == pytest.approx(3 + 4 * 2 * 0.2)
    assert done.useful_forward_fraction == pytest.approx(4.2 / 4.6)
