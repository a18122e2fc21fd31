"""Returns and advantages along a trace: from tokens to steps, and back to tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TokenReturns(NamedTuple):
    """What a value model is trained on, and what the denoiser is trained with.

    Attributes:
        returns: R_j, the discounted reward from each token on; 0 where nothing is trained.
        advantages: A_j; 0 where nothing is trained.
    """

    returns: Float[Array, "B L"]
    advantages: Float[Array, "B L"]


def trace_gae(
    rewards: Float[Array, "B L"],
    values: Float[Array, "B L"],
    time: Int[Array, "B L"],
    trained: Bool[Array, "B L"],
    gamma: float,
    lam: float,
) -> TokenReturns:
    """Generalised advantage estimation over the steps of a trace: arXiv 2509.06949, section 4.2.

    The tokens of a step are filled in together, so a step has the mean reward r* and the mean
    value V* of its tokens; over steps,

        R*_t = r*_t + gamma R*_{t+1}
        A*_t = r*_t - V*_t + gamma V*_{t+1} + gamma lambda A*_{t+1}

    with zeros behind the last. A token j of step t has its own reward and value, and the future of
    its step:

        R_j = r_j + gamma R*_{t+1}
        A_j = r_j - V_j + gamma V*_{t+1} + gamma lambda A*_{t+1}

    Args:
        rewards: reward of each token.
        values: value of each token, read where the token was still masked.
        time: step of each token in 0 .. L - 1; steps without a trained token are skipped.
        trained: the tokens that count; what stands elsewhere is ignored.
        gamma: discount per step.
        lam: lambda of GAE.
    """
    rewards = jnp.where(trained, rewards, 0.0)
    values = jnp.where(trained, values, 0.0)
    batch, steps = time.shape

    def per_step(of_tokens: Float[Array, "B L"]) -> Float[Array, "B L"]:
        rows = jnp.arange(batch)[:, None]
        return jnp.zeros((batch, steps)).at[rows, time].add(of_tokens)

    count = per_step(trained.astype(jnp.float32))
    mean_reward = per_step(rewards) / jnp.maximum(count, 1.0)
    mean_value = per_step(values) / jnp.maximum(count, 1.0)

    def backward(after: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, value, exists = now
        later_return, later_value, later_advantage = after
        advantage = reward - value + gamma * later_value + gamma * lam * later_advantage
        here = jnp.stack([reward + gamma * later_return, value, advantage])
        # What a token of this step needs is what comes after it.
        return jnp.where(exists, here, after), after

    start = jnp.zeros((3, batch))
    _, after = jax.lax.scan(
        backward, start, (mean_reward.T, mean_value.T, count.T > 0), reverse=True
    )
    # [L, 3, B] over steps becomes, for each token, what comes after its own step.
    later = jnp.take_along_axis(after.transpose(1, 2, 0), time[None], axis=-1)
    later_return, later_value, later_advantage = later
    returns = rewards + gamma * later_return
    advantages = rewards - values + gamma * later_value + gamma * lam * later_advantage
    return TokenReturns(
        returns=jnp.where(trained, returns, 0.0), advantages=jnp.where(trained, advantages, 0.0)
    )
