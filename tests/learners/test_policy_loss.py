"""The clipped objective, the expert mixture and the averaging, against numbers worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.learners.losses import clipped_objective, mixture_log_prob, step_weights


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.4, 1.0, 1.4, 1.4),
        (1.6, 1.0, 1.5, 0.0),  # a good step is already likelier: no gradient
        (0.3, 1.0, 0.3, 0.3),  # a good step became unlikely: full gradient
        (0.3, -1.0, -0.5, 0.0),  # a bad step is already unlikelier: no gradient
        (1.6, -1.0, -1.6, -1.6),  # a bad step became likelier: full gradient
    ],
)
def test_clipped_objective(ratio, advantage, value, slope):
    def objective(log_prob):
        return clipped_objective(log_prob, jnp.float32(-3.0), jnp.float32(advantage), 0.5)

    got, grad = jax.value_and_grad(objective)(jnp.float32(-3.0 + math.log(ratio)))
    assert float(got) == pytest.approx(value, rel=1e-5)
    assert float(grad) == pytest.approx(slope, rel=1e-5)


def test_clipped_objective_survives_huge_ratios():
    def objective(log_prob):
        return clipped_objective(log_prob, jnp.float32(-200.0), jnp.float32(-1.0), 0.5)

    value, grad = jax.value_and_grad(objective)(jnp.float32(0.0))
    assert np.isfinite(value) and np.isfinite(grad)


def test_mixture_is_the_log_of_the_mean():
    log_prob = np.array([0.0, -1.0, -5.0, -80.0, -1e4], np.float32)
    got = mixture_log_prob(jnp.asarray(log_prob), group_size=3, num_experts=1)
    expected = np.log(0.75 * np.exp(log_prob.astype(np.float64)) + 0.25)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_step_weights_are_means_of_means():
    active = jnp.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], bool)
    third = 1 / 6
    np.testing.assert_allclose(
        step_weights(active), [[third, 0.5, 0], [third, 0, 0], [third, 0, 0], [0, 0, 0]], rtol=1e-6
    )
