"""Advantages: how much better a rollout did than the others of its prompt."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class GroupAdvantages(NamedTuple):
    """Advantages of a batch, and how much of it carries any signal.

    Attributes:
        advantages: reward minus the mean reward of the row's group.
        signal: the rewards of the row's group differ; else its advantages are exactly 0.
        signal_fraction: share of the groups whose rewards differ (a scalar in [0, 1]).
    """

    advantages: Float[Array, " B"]
    signal: Bool[Array, " B"]
    signal_fraction: Float[Array, ""]


def group_advantages(rewards: Float[Array, " B"], group_size: int) -> GroupAdvantages:
    """Centres rewards on the mean of their group: A_i = R_i - mean_j R_j.

    There is no division by the standard deviation: it would weigh prompts by how seldom they
    succeed (arXiv 2503.20783), and unmasking policies are trained without it (arXiv 2512.09106).
    The mean of n equal floats need not equal them, so groups of
    equal rewards are set to zero explicitly; a learner may then skip them by testing for zero.

    Args:
        rewards: rewards, the rows of a group next to each other.
        group_size: rows per group, experts included (static).

    Returns:
        Float32 advantages with their signal mask, in the order of `rewards`.

    Raises:
        ValueError: `rewards` is not a vector, or `group_size` does not divide its length.
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
        signal=jnp.repeat(differ, group_size, total_repeat_length=batch),
        signal_fraction=jnp.mean(differ, dtype=jnp.float32),
    )


def group_z_scores(rewards: Float[Array, " B"], group_size: int) -> GroupAdvantages:
    """Centres rewards on the mean of their group and divides by its standard deviation.

    The deviation is that of the group itself (divided by n, not n - 1), with nothing added to it;
    a group of equal rewards gets zeros (arXiv 2509.06949, section 5.1).

    Args:
        rewards: rewards, the rows of a group next to each other.
        group_size: rows per group (static).

    Returns:
        Float32 advantages with their signal mask, in the order of `rewards`.

    Raises:
        ValueError: as `group_advantages`.
    """
    centred = group_advantages(rewards, group_size)
    groups = centred.advantages.reshape(-1, group_size)
    deviation = jnp.sqrt(jnp.mean(jnp.square(groups), axis=1, keepdims=True))
    # Rewards that differ by less than the square root of the smallest number deviate by zero.
    scores = jnp.where(deviation > 0, groups / jnp.where(deviation > 0, deviation, 1.0), 0.0)
    return centred._replace(advantages=scores.reshape(-1))


def kept_groups(
    accuracy: Float[np.ndarray, " P"], low: float, high: float
) -> Bool[np.ndarray, " P"]:
    """Which prompts teach something: those that are neither hopeless nor solved.

    Args:
        accuracy: share of right responses of each prompt's group.
        low: smallest accuracy that is kept (0.2 published in arXiv 2509.06949).
        high: largest one (0.8 published).
    """
    # Shares of small groups meet the bounds exactly up to rounding: 0.8 of five is 4 / 5.
    return (accuracy >= low - 1e-6) & (accuracy <= high + 1e-6)
