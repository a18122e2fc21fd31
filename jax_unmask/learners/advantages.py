"""Advantages and returns: from the rewards of rollouts to what learners weigh actions by."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class GroupAdvantages(NamedTuple):
    """Advantages of a batch, exactly 0 in groups of equal rewards.

    Attributes:
        advantages: reward minus the mean reward of the row's group.
        signal_fraction: share of the groups whose rewards differ (a scalar in [0, 1]).
    """

    advantages: Float[Array, " B"]
    signal_fraction: Float[Array, ""]


def group_advantages(rewards: Float[Array, " B"], group_size: int) -> GroupAdvantages:
    """Centres rewards on the mean of their group: A_i = R_i - mean_j R_j.

    There is no division by the standard deviation: it would weigh prompts by how seldom they
    succeed (arXiv 2503.20783), and unmasking policies are trained without it (arXiv 2512.09106).
    The mean of n equal floats need not equal them, so groups of equal rewards are set to zero
    explicitly, for learners that skip zeros.

    Args:
        rewards: rewards, the rows of a group next to each other.
        group_size: rows per group, experts included (static).

    Raises:
        ValueError: `rewards` is not a vector, or `group_size` does not divide its length.

    >>> group_advantages([1.0, 0.0, 0.0, 0.0], group_size=2).advantages.tolist()
    [0.5, -0.5, 0.0, 0.0]
    """
    rewards = jnp.asarray(rewards, jnp.float32)
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be a vector [B], got shape {rewards.shape}")
    batch = rewards.shape[0]
    if group_size < 1 or batch == 0 or batch % group_size:
        raise ValueError(
            f"group_size={group_size} does not divide the batch of {batch} rewards; choose a batch "
            "that is a whole number of groups"
        )
    groups = rewards.reshape(-1, group_size)
    differ = jnp.max(groups, axis=1) != jnp.min(groups, axis=1)
    centred = groups - jnp.mean(groups, axis=1, keepdims=True)
    return GroupAdvantages(
        advantages=jnp.where(differ[:, None], centred, 0.0).reshape(batch),
        signal_fraction=jnp.mean(differ, dtype=jnp.float32),
    )


def relative_rewards(
    rewards: Sequence[np.ndarray], if_right: Sequence[np.ndarray], groups: int
) -> list[np.ndarray]:
    """Rewards over the mean reward that the answers of a group would have had, were they right.

    Groups whose rewards are of different sizes, by their own weights of forwards, count alike then.
    It changes no order within a group, nor how rewards compare; none exceeds the rows of a group.

    Args:
        rewards: arrays [groups * n] (n may differ), each with the rows of a group next to each
            other. A group has its rows of all arrays.
        if_right: likewise; the rewards of right answers in as many forwards.
        groups: number of groups.

    Returns:
        Arrays like `rewards`, float32. They are made in float64, since rewards can be very small.

    >>> slow, fast = np.array([1e-90, 0.0]), np.array([3e-90])
    >>> relative_rewards([slow, fast], [np.array([1e-90, 2e-90]), fast], groups=1)
    [array([0.5, 0. ], dtype=float32), array([1.5], dtype=float32)]
    """
    sizes = [np.abs(np.asarray(each, np.float64)).reshape(groups, -1) for each in if_right]
    size = np.concatenate(sizes, axis=1).mean(axis=1)[:, None]
    size = np.where(size > 0, size, 1.0)
    rows = [np.asarray(each, np.float64).reshape(groups, -1) for each in rewards]
    return [(each / size).astype(np.float32).reshape(-1) for each in rows]


def group_z_scores(rewards: Float[Array, " B"], group_size: int) -> GroupAdvantages:
    """Centres rewards on the mean of their group and divides by its standard deviation.

    The deviation is that of the group itself (divided by n, not n - 1), with nothing added to it;
    a group of equal rewards gets zeros (arXiv 2509.06949, section 5.1).

    Args and errors: as `group_advantages`.
    """
    centred = group_advantages(rewards, group_size)
    groups = centred.advantages.reshape(-1, group_size)
    deviation = jnp.sqrt(jnp.mean(jnp.square(groups), axis=1, keepdims=True))
    # Rewards that differ by less than the square root of the smallest number deviate by zero.
    scores = jnp.where(deviation > 0, groups / jnp.where(deviation > 0, deviation, 1.0), 0.0)
    return centred._replace(advantages=scores.reshape(-1))


class TokenReturns(NamedTuple):
    """Targets of a value model, and advantages for the denoiser; 0 where nothing is trained."""

    returns: Float[Array, "B L"]  # R_j, the discounted reward from each token on.
    advantages: Float[Array, "B L"]  # A_j.


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

    with zeros after the last. A token j of step t has its own reward and value, and the future of
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
        # The tokens of this step need the step after it.
        return jnp.where(exists, here, after), after

    start = jnp.zeros((3, batch))
    _, after = jax.lax.scan(
        backward, start, (mean_reward.T, mean_value.T, count.T > 0), reverse=True
    )
    # From [L, 3, B] over steps to [3, B, L]: for each token the step after its own.
    later = jnp.take_along_axis(after.transpose(1, 2, 0), time[None], axis=-1)
    later_return, later_value, later_advantage = later
    returns = rewards + gamma * later_return
    advantages = rewards - values + gamma * later_value + gamma * lam * later_advantage
    return TokenReturns(
        returns=jnp.where(trained, returns, 0.0), advantages=jnp.where(trained, advantages, 0.0)
    )


def outcome_rewards(
    reward: Float[Array, " B"], time: Int[Array, "B L"], trained: Bool[Array, "B L"]
) -> Float[Array, "B L"]:
    """Puts the reward of a whole response on all trained tokens of its last step, 0 elsewhere.

    With gamma = lambda = 1 every token's return is then that reward.

    Args:
        reward: one number per response.
        time: step of each token, see `merged_steps`.
        trained: the tokens that count.
    """
    last = jnp.max(jnp.where(trained, time, -1), axis=-1, keepdims=True)
    return jnp.where(trained & (time == last), reward[:, None], 0.0)


def chunk_z_scores(
    scores: Float[np.ndarray, "B K"], present: Bool[np.ndarray, "B K"], group_size: int
) -> Float[np.ndarray, "B K"]:
    """Scores relative to those of the same chunk of the group's other responses.

    Args:
        scores: score of chunk k of each response.
        present: the response has that chunk; what stands elsewhere is ignored.
        group_size: responses per prompt, next to each other.

    Returns:
        (score - mean) / deviation over the group's responses that have the chunk; 0 where they do
        not differ, and where there is no chunk.
    """
    shape = (-1, group_size, scores.shape[1])
    values, there = scores.reshape(shape).astype(np.float32), present.reshape(shape)
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    mean = np.where(there, values, 0.0).sum(axis=1, keepdims=True) / count
    centred = np.where(there, values - mean, 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / count)
    scored = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-6)
    return scored.reshape(scores.shape)


def chunk_rewards(
    scores: Float[Array, "B K"],
    length: Int[Array, " B"],
    time: Int[Array, "B L"],
    trained: Bool[Array, "B L"],
    chunk_length: int,
) -> Float[Array, "B L"]:
    """Puts the score of each chunk on the tokens of the chunk's last step, 0 elsewhere.

    The score of a response's last chunk goes to the last step of the whole response, as the reward
    of the outcome does. The score of a chunk without a trained token is lost.

    Args:
        scores: scores of the chunks; chunk k covers tokens k * chunk_length and on.
        length: tokens of each response that are judged.
        time: step of each token, see `merged_steps`.
        trained: the tokens that count.
        chunk_length: tokens per chunk (static).
    """
    positions = jnp.arange(time.shape[1])
    num_chunks = scores.shape[1]
    last_chunk = (jnp.maximum(length, 1) - 1) // chunk_length
    chunk = jnp.minimum(positions // chunk_length, num_chunks - 1)
    judged = trained & (positions < length[:, None])
    member = (chunk[None, :, None] == jnp.arange(num_chunks)) & judged[..., None]
    last_of_chunk = jnp.max(jnp.where(member, time[..., None], -1), axis=1)
    at_end = judged & (time == last_of_chunk[:, chunk])
    rewards = jnp.where(at_end & (chunk < last_chunk[:, None]), scores[:, chunk], 0.0)
    last = jnp.max(jnp.where(trained, time, -1), axis=1, keepdims=True)
    final = jnp.take_along_axis(scores, last_chunk[:, None], axis=1)
    return rewards + jnp.where(trained & (time == last), final, 0.0)
