import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.tasks import rewards

CORRECT = np.array([1.0, 1.0, 0.0, 1.0])
NFE = np.array([1, 32, 8, 90])


@pytest.mark.parametrize("reward", (rewards.multiplicative, rewards.additive))
def test_numpy_jax_jit_and_booleans_agree(reward):
    host = reward(CORRECT, NFE, 64, 3.0)
    device = reward(jnp.asarray(CORRECT), jnp.asarray(NFE), 64, 3.0)
    assert isinstance(host, np.ndarray) and isinstance(device, jax.Array)
    for other in (device, jax.jit(reward, static_argnums=2)(CORRECT, NFE, 64, 3.0)):
        np.testing.assert_allclose(other, host, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(reward(CORRECT > 0, NFE, 64, 3.0), host)


@pytest.mark.parametrize("reward", (rewards.multiplicative, rewards.additive))
def test_alpha_zero_rewards_correctness_alone(reward):
    np.testing.assert_array_equal(reward(CORRECT, NFE, 64, 0.0), CORRECT)
    with pytest.raises(ValueError, match="gen_length=0"):
        reward(1.0, 1, 0, 1.0)


def test_multiplicative_falls_with_cost_and_never_punishes_a_wrong_answer():
    values = rewards.multiplicative(np.ones(64), np.arange(1, 65), 64, 2.0)
    assert values[0] == 1 and values[-1] == (1 / 64) ** 2
    assert (np.diff(values) < 0).all()
    assert rewards.multiplicative(1.0, 90, 64, 2.0) == values[-1]  # The canvas is the most.
    assert (rewards.multiplicative(np.zeros(64), np.arange(1, 65), 64, 2.0) == 0).all()
