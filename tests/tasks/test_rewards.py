import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.tasks import rewards

CORRECT = np.array([1.0, 1.0, 0.0, 1.0])
NFE = np.array([1, 32, 8, 90])


@pytest.mark.parametrize("name", sorted(rewards.REWARDS))
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 10.0])
def test_numpy_jax_and_jit_agree(name, alpha):
    reward = rewards.REWARDS[name]
    host = reward(CORRECT, NFE, 64, alpha)
    device = reward(jnp.asarray(CORRECT), jnp.asarray(NFE), 64, alpha)
    compiled = jax.jit(reward, static_argnums=2)(CORRECT, NFE, 64, alpha)
    assert isinstance(host, np.ndarray)
    assert isinstance(device, jax.Array)
    np.testing.assert_allclose(device, host, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(compiled, host, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(rewards.REWARDS))
def test_alpha_zero_rewards_correctness_alone(name):
    np.testing.assert_array_equal(rewards.REWARDS[name](CORRECT, NFE, 64, 0.0), CORRECT)


def test_multiplicative_falls_with_cost_and_never_punishes_a_wrong_answer():
    values = rewards.multiplicative(np.ones(64), np.arange(1, 65), 64, 2.0)
    assert values[0] == 1
    assert (np.diff(values) < 0).all()
    assert values[-1] == (1 / 64) ** 2
    assert (rewards.multiplicative(np.zeros(64), np.arange(1, 65), 64, 2.0) == 0).all()


def test_multiplicative_counts_at_most_the_canvas():
    assert rewards.multiplicative(1.0, 90, 64, 1.0) == rewards.multiplicative(1.0, 64, 64, 1.0)


def test_additive_charges_wrong_answers_and_is_not_clipped():
    assert rewards.additive(0.0, 64, 64, 3.0) == -3.0


def test_booleans_count_as_scores():
    np.testing.assert_array_equal(
        rewards.multiplicative(CORRECT > 0, NFE, 64, 1.0),
        rewards.multiplicative(CORRECT, NFE, 64, 1.0),
    )
    np.testing.assert_array_equal(
        rewards.additive(CORRECT > 0, NFE, 64, 1.0), rewards.additive(CORRECT, NFE, 64, 1.0)
    )


@pytest.mark.parametrize("name", sorted(rewards.REWARDS))
def test_a_canvas_has_a_length(name):
    with pytest.raises(ValueError, match="gen_length=0"):
        rewards.REWARDS[name](1.0, 1, 0, 1.0)
