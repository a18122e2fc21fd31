"""The optimiser of all learners: AdamW, warm-up and a schedule, clipping by global norm."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

ScheduleName = Literal["cosine", "constant", "stable"]

# Share of a "stable" run in which the rate falls.
_DECAY = 0.25

# Ends of the names of leaves that weight decay leaves alone: biases and normalisation gains.
_NOT_DECAYED = ("bias", "scale")


def make_schedule(
    lr: float,
    warmup_steps: int,
    total_steps: int,
    schedule: ScheduleName = "cosine",
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """Learning rate by optimiser step, counted from 0.

    Warm-up is linear from `lr / warmup_steps` at step 0 to `lr` at step `warmup_steps - 1` (no
    step is spent at a rate of zero). Then "constant" stays at `lr`, and "cosine" falls from `lr`
    to `final_fraction * lr`, reached at `total_steps` and kept. "stable" stays at `lr` for three
    quarters of the run and falls linearly in the last one (arXiv 2404.06395), so a longer run
    begins with the same steps and can go on from a shorter one's checkpoints.

    Args:
        lr: peak learning rate.
        warmup_steps: steps of warm-up, 0 for none.
        total_steps: optimiser steps of the whole run, warm-up included.
        schedule: "cosine", "constant" or "stable".
        final_fraction: final learning rate, except of "constant", as a fraction of the peak.

    Raises:
        ValueError: a value makes no sense; the message names it.
    """
    if lr <= 0:
        raise ValueError(f"lr={lr} must be positive")
    if schedule not in get_args(ScheduleName):
        known = get_args(ScheduleName)
        raise ValueError(f"schedule={schedule!r} is unknown; choose one of {known}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} must not be negative")
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps} must be at least 1")
    if schedule == "cosine" and warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} leaves nothing of total_steps={total_steps} for the "
            "cosine; lower warmup_steps or train longer"
        )
    if not 0.0 <= final_fraction <= 1.0:
        raise ValueError(f"final_fraction={final_fraction} must lie in [0, 1]")

    def rate(count: Array) -> Float[Array, ""]:
        count = jnp.asarray(count, jnp.float32)
        warmup = (count + 1.0) / max(warmup_steps, 1)
        if schedule == "constant":
            after = jnp.ones_like(count)
        elif schedule == "stable":
            left = jnp.clip((total_steps - count) / (_DECAY * total_steps), 0.0, 1.0)
            after = final_fraction + (1.0 - final_fraction) * left
        else:
            progress = jnp.clip((count - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            after = final_fraction + (1.0 - final_fraction) * cosine
        return lr * jnp.where(count < warmup_steps, warmup, after)

    return rate


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: all but biases and normalisation gains.

    Leaves are told by their name, not by their rank: layers that are stacked for a scan have
    biases of rank two.

    Args:
        params: nested dict of parameters in linen's names.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return not str(getattr(path[-1], "key", "")).endswith(_NOT_DECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    lr: float,
    warmup_steps: int,
    total_steps: int,
    schedule: ScheduleName = "cosine",
    final_fraction: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.1,
    grad_clip: float | None = None,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind gradient clipping by global norm.

    The published unmasking policies (arXiv 2512.09106) use lr 3e-5, 100 warm-up steps, cosine to
    0, b1 0.9, b2 0.99, weight decay 0.1 and clipping at 0.2; small policies that are trained for
    a few hundred steps need a rate about 100 times higher.

    Args:
        lr: peak learning rate.
        warmup_steps: optimiser steps of linear warm-up.
        total_steps: optimiser steps of the whole run: iterations times the updates of each.
        schedule: "cosine" or "constant", see `make_schedule`.
        final_fraction: final learning rate of "cosine" as a fraction of the peak.
        b1: decay of the first moment.
        b2: decay of the second moment.
        weight_decay: decoupled weight decay, on the leaves that `decay_mask` selects.
        grad_clip: largest global norm of the gradient; None for no clipping.

    Raises:
        ValueError: a value makes no sense; the message names it.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}={value} must lie in [0, 1)")
    if weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay} must not be negative")
    if grad_clip is not None and grad_clip <= 0:
        raise ValueError(f"grad_clip={grad_clip} must be positive; None turns clipping off")
    rate = make_schedule(lr, warmup_steps, total_steps, schedule, final_fraction)
    adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask)
    return adamw if grad_clip is None else optax.chain(optax.clip_by_global_norm(grad_clip), adamw)
