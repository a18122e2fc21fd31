"""The objectives of TraceRL as pure functions over log-probabilities and values of tokens."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_unmask.learners.policy_loss import clipped_objective

KlEstimator = Literal["k1", "k2", "k3"]
Normaliser = Literal["step", "length"]


def clamped_log_ratio(
    log_prob: Float[Array, "*N"], other: Float[Array, "*N"], limit: float
) -> Float[Array, "*N"]:
    """log_prob - other, held within [-limit, limit]; beyond it no gradient flows.

    Args:
        log_prob: log-probabilities under the parameters being trained.
        other: the same under others; a constant.
        limit: largest absolute value (10 published); it bounds ratios by exp(limit).
    """
    return jnp.clip(log_prob - other, -limit, limit)


def ratio_objective(
    log_ratio: Float[Array, "*N"], advantage: Float[Array, "*N"], epsilon: float
) -> Float[Array, "*N"]:
    """The clipped surrogate min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = exp(log_ratio)."""
    return clipped_objective(log_ratio, jnp.zeros_like(log_ratio), advantage, epsilon)


def kl_estimate(log_ratio: Float[Array, "*N"], estimator: KlEstimator) -> Float[Array, "*N"]:
    """Sample estimate of KL(pi || other) from log pi - log other.

    With t = -log_ratio: k1 = -t, k2 = t^2 / 2, k3 = exp(t) - 1 - t. (J. Schulman, "Approximating KL
    divergence", 2020.) All are 0 where the two agree; k3 is unbiased as k1 is, and never negative.

    Args:
        log_ratio: log pi - log other of the sampled tokens, see `clamped_log_ratio`.
        estimator: which one.

    Raises:
        ValueError: there is no such estimator.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * jnp.square(log_ratio)
    if estimator == "k3":
        return jnp.expm1(-log_ratio) + log_ratio
    raise ValueError(f"estimator={estimator!r} is unknown; choose 'k1', 'k2' or 'k3'")


def token_weights(trained: Bool[Array, "*N L"], normaliser: Normaliser) -> Float[Array, "*N L"]:
    """Weight of each token of a row (one state of one response) in the row's loss.

    Args:
        trained: the tokens that the row trains.
        normaliser: "step" gives 1 / (trained tokens of the row), so that every step weighs the
            same (arXiv 2509.06949, eq. 3; its full-attention models); "length" gives 1 / L, so that
            every token does (its block-attention models; arXiv 2503.20783).

    Raises:
        ValueError: there is no such normaliser.
    """
    if normaliser == "step":
        count = jnp.sum(trained, axis=-1, keepdims=True)
        weight = 1.0 / jnp.maximum(count, 1).astype(jnp.float32)
    elif normaliser == "length":
        weight = jnp.full((), 1.0 / trained.shape[-1])
    else:
        raise ValueError(f"normaliser={normaliser!r} is unknown; choose 'step' or 'length'")
    return jnp.where(trained, weight, 0.0)


def clipped_value_loss(
    values: Float[Array, "*N"],
    old_values: Float[Array, "*N"],
    returns: Float[Array, "*N"],
    epsilon: float,
) -> Float[Array, "*N"]:
    """Half the squared error of each value, or of its clipped version where that is larger.

    1/2 max[(V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2], arXiv 2509.06949, eq. 4.

    Args:
        values: values under the parameters being trained.
        old_values: values when the batch began; a constant.
        returns: what the values should be; a constant.
        epsilon: how far a value may move while its gradient lasts.
    """
    clipped = old_values + jnp.clip(values - old_values, -epsilon, epsilon)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
