"""Group advantages: centred, exactly zero without signal, independent of other groups."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unmask.learners.advantages import group_advantages

rewards_and_groups = st.integers(1, 6).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(
            # Half precision: XLA on CPUs flushes what is subnormal in float32 to zero.
            st.lists(st.floats(-2, 2, width=16), min_size=size, max_size=size),
            min_size=1,
            max_size=5,
        ),
    )
)


def test_golden_with_and_without_jit():
    rewards = np.array([1.0, 0.0, 0.5, 0.5, 0.25, 0.75], np.float32)
    for function in (group_advantages, jax.jit(group_advantages, static_argnums=1)):
        out = function(rewards, 2)
        np.testing.assert_array_equal(out.advantages, [0.5, -0.5, 0.0, 0.0, -0.25, 0.25])
        assert float(out.signal_fraction) == pytest.approx(2 / 3)


@settings(max_examples=60, deadline=None)
@given(rewards_and_groups)
def test_properties(case):
    size, groups = case
    table = np.array(groups, np.float32)
    out = group_advantages(table.reshape(-1), size)
    advantages = np.asarray(out.advantages).reshape(table.shape)
    expected = table.astype(np.float64) - table.mean(axis=1, keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(advantages, expected, atol=2e-6)
    equal = (table == table[:, :1]).all(axis=1)
    np.testing.assert_array_equal(advantages[equal], 0.0)
    assert float(out.signal_fraction) == pytest.approx(np.mean(~equal))
    # A group's advantages are its own business.
    alone = group_advantages(table[-1], size).advantages
    np.testing.assert_allclose(advantages[-1], alone, atol=1e-6)


@pytest.mark.parametrize("size", [3, 5, 6, 7, 10])
def test_equal_rewards_give_exactly_zero(size):
    # The float32 mean of n equal numbers is not always that number.
    for reward in np.linspace(0.01, 0.99, 23, dtype=np.float32):
        out = group_advantages(np.full(2 * size, reward), size)
        assert not np.any(out.advantages)
        assert float(out.signal_fraction) == 0.0


@pytest.mark.parametrize(("shape", "size", "words"), [(6, 4, "group_size=4"), ((2, 3), 3, "shape")])
def test_rewards_must_be_whole_groups(shape, size, words):
    with pytest.raises(ValueError, match=words):
        group_advantages(np.zeros(shape), size)
