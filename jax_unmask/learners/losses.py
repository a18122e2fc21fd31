"""Losses of all learners as pure functions over log-probabilities and values."""

import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

KlEstimator = Literal["k1", "k2", "k3"]
Normaliser = Literal["step", "length"]

# Largest log ratio whose gradient still flows. exp overflows at 88; long before that a gradient
# multiplied by the ratio has lost all meaning.
_MAX_LOG_RATIO = 20.0


def clipped_objective(
    log_prob: Float[Array, "*N"],
    old_log_prob: Float[Array, "*N"],
    advantage: Float[Array, "*N"],
    clip: float,
) -> Float[Array, "*N"]:
    """The clipped surrogate min(rho A, [rho within 1 ± clip] A) of each step, to maximise.

    The ratio rho = exp(log_prob - old_log_prob) is that of a whole step: the joint probability of
    all positions that the policy decided on at once (arXiv 1707.06347, eq. 7; arXiv 2512.09106
    uses clip = 0.5). Ratios are capped at e^20, so that neither value nor gradient overflows.

    Args:
        log_prob: log-probability of the step's action under the policy being trained.
        old_log_prob: the same under the policy that acted; a constant.
        advantage: advantage of the row that the step belongs to.
        clip: how far the ratio may move from 1 before its gradient vanishes.

    >>> good_step_that_is_likelier = jnp.log(2.0), jnp.zeros(()), jnp.ones(())
    >>> float(clipped_objective(*good_step_that_is_likelier, clip=0.5))
    1.5
    """
    if not log_prob.shape == old_log_prob.shape == advantage.shape:
        raise ValueError(
            "log_prob, old_log_prob and advantage must have one shape, got "
            f"{log_prob.shape}, {old_log_prob.shape} and {advantage.shape}"
        )
    ratio = jnp.exp(jnp.minimum(log_prob - old_log_prob, _MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return jnp.minimum(ratio * advantage, clipped * advantage)


def mixture_log_prob(
    log_prob: Float[Array, "*N"], group_size: int, num_experts: int
) -> Float[Array, "*N"]:
    """Log-probability of an expert's action under the mixture that its group was drawn from.

    A group of G policy rollouts and E expert rollouts is a sample of the mixture of the policy and
    of the experts, each of which is a point mass on the action it took (arXiv 2512.09106, expert
    steering):

        log( G / (G + E) * pi(u) + 1 / (G + E) )

    It bounds the ratio of expert steps: they teach while the policy finds them improbable, and
    cannot blow up.

    Args:
        log_prob: log pi(u), the log-probability of the expert's action under the policy.
        group_size: G, policy rollouts per group.
        num_experts: E, expert rollouts per group.
    """
    if group_size < 1 or num_experts < 1:
        raise ValueError(
            f"group_size={group_size} and num_experts={num_experts} must both be at least 1: "
            "the mixture is that of policy and expert rollouts"
        )
    total = group_size + num_experts
    return jnp.logaddexp(math.log(group_size / total) + log_prob, math.log(1.0 / total))


def step_weights(
    active: Bool[Array, "T B"], total: Callable[[Array], Array] | None = None
) -> Float[Array, "T B"]:
    """Weight of each step such that a weighted sum is a mean over rows of means over active steps.

    w[t, b] = active[t, b] / (n_b * B'), with n_b the active steps of row b and B' the rows that
    have any. A row that needed many steps thus counts as much as one that needed few.

    Args:
        active: the row still had a position to fill at this step.
        total: where the rows are spread over devices, sums a number over all of them.

    >>> step_weights(jnp.asarray([[True, True], [True, False]])).tolist()
    [[0.25, 0.5], [0.25, 0.0]]
    """
    steps = jnp.sum(active, axis=0)
    rows = jnp.sum(steps > 0)
    rows = rows if total is None else total(rows)
    scale = jnp.maximum(steps, 1) * jnp.maximum(rows, 1)
    return jnp.where(active, 1.0 / scale.astype(jnp.float32), 0.0)


def kl_estimate(log_ratio: Float[Array, "*N"], estimator: KlEstimator) -> Float[Array, "*N"]:
    """Sample estimate of KL(pi || other) from log pi - log other.

    With t = -log_ratio: k1 = -t, k2 = t^2 / 2, k3 = exp(t) - 1 - t. (J. Schulman, "Approximating KL
    divergence", 2020.) All are 0 where the two agree; k3 is unbiased as k1 is, and never negative.

    Args:
        log_ratio: log pi - log other of the sampled tokens.
        estimator: which one.
    """
    return {
        "k1": lambda x: x,
        "k2": lambda x: 0.5 * jnp.square(x),
        "k3": lambda x: jnp.expm1(-x) + x,
    }[estimator](log_ratio)


def token_weights(trained: Bool[Array, "*N L"], normaliser: Normaliser) -> Float[Array, "*N L"]:
    """Weight of each token of a row (one state of one response) in the row's loss.

    Args:
        trained: the tokens that the row trains.
        normaliser: "step" gives 1 / (trained tokens of the row), so that every step weighs the
            same (arXiv 2509.06949, eq. 3; its full-attention models); "length" gives 1 / L, so that
            every token does (its block-attention models; arXiv 2503.20783).
    """
    weight = jnp.full((), 1.0 / trained.shape[-1])
    if normaliser == "step":
        count = jnp.sum(trained, axis=-1, keepdims=True)
        weight = 1.0 / jnp.maximum(count, 1).astype(jnp.float32)
    return jnp.where(trained, weight, 0.0)


def clipped_value_loss(
    values: Float[Array, "*N"],
    old_values: Float[Array, "*N"],
    returns: Float[Array, "*N"],
    clip: float,
) -> Float[Array, "*N"]:
    """Half the squared error of each value, or of its clipped version where that is larger.

    1/2 max[(V - R)^2, (V_old + [V - V_old within ± clip] - R)^2], arXiv 2509.06949, eq. 4.

    Args:
        values: under the parameters being trained.
        old_values: when the batch began; a constant.
        returns: the targets; constants.
        clip: how far a value may move while its gradient lasts.
    """
    clipped = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
