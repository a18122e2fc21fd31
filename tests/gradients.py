"""Gradients and log-probabilities of learners, which take them only as part of an update."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jax_unmask.learners import policy_grpo
from jax_unmask.learners.engine import ALONE, split
from jax_unmask.learners.losses import step_weights
from jax_unmask.learners.states.batch import StateBatch


@functools.partial(jax.jit, static_argnums=0)
def of_policy(learner, params, records, advantages, is_expert=None):
    """Gradient of the loss of a whole batch in `params["network"]`, and the metrics.

    The records' log-probabilities are the old ones of all rows, those of experts under the policy
    alone.
    """
    rows = policy_grpo._Rows(advantages, is_expert)
    cells = split(learner._wanted(records, rows))
    weights, index = step_weights(records.active), jnp.zeros((), jnp.int32)
    grads, sums = learner._gradient(
        ALONE, params, records, rows, weights, params["network"], index, cells, cells.first
    )
    return grads, policy_grpo._named(sums.metrics())


@functools.partial(jax.jit, static_argnums=0)
def log_probs(learner, params, responses, kept, key):
    """Log-probabilities [slots, B, L] of the tokens that the first pass trains, 0 elsewhere."""
    return StateBatch.of(learner, responses, kept, key).log_probs(params, 0)
