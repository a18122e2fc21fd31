"""Gradients and log-probabilities of learners, which take them only as part of an update."""

import copy
import functools

import jax
import jax.numpy as jnp

from jax_unmask.learners import policy_grpo
from jax_unmask.learners.engine import ALONE, split
from jax_unmask.learners.losses import clipped_objective, step_weights
from jax_unmask.learners.states import StateBatch


def grid_policy_loss(log_prob, old_log_prob, advantages, active, clip):
    """The loss by its definition: minus the clipped objective, averaged over steps, then rows."""
    # What stands in inactive steps is arbitrary, and infinity times the weight zero is a NaN.
    new, old = (jnp.where(active, x, 0.0) for x in (log_prob, old_log_prob))
    objective = clipped_objective(new, old, jnp.broadcast_to(advantages, active.shape), clip)
    return -jnp.sum(step_weights(active) * objective)


@functools.partial(jax.jit, static_argnums=0)
def of_policy(learner, params, records, advantages, is_expert=None, clip=None):
    """Gradient of the loss of a whole batch in `params["network"]`, and the metrics.

    The records' log-probabilities are the old ones of all rows, those of experts under the policy
    alone. One program serves all values of `clip`, if it is given.
    """
    if clip is not None:
        learner = copy.copy(learner)
        object.__setattr__(learner, "clip", clip)
    rows = policy_grpo.PolicyRows(advantages, is_expert)
    cells, weights = split(learner.wanted(ALONE, records, rows)), step_weights(records.active)
    grads, sums = learner.gradient(
        ALONE, params, records, rows, weights, params["network"], cells, cells.first
    )
    return grads, policy_grpo._named(sums.metrics())


@functools.partial(jax.jit, static_argnums=0)
def log_probs(learner, params, responses, kept, key):
    """Log-probabilities [slots, B, L] of the tokens that the first pass trains, 0 elsewhere."""
    return StateBatch(learner, responses, learner.describe(responses), kept, key).log_probs(
        params, 0
    )
