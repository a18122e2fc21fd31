"""The diffusion value model: the reward to expect of a token of a partly masked canvas."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.transformer import Params
from jax_unmask.learners.advantages import trace_gae
from jax_unmask.learners.engine import (
    Chunk,
    Metrics,
    Minibatch,
    Minibatches,
    Optimised,
    Sums,
    accumulate,
    optimise,
)
from jax_unmask.learners.losses import clipped_value_loss
from jax_unmask.learners.states import AttentionBlocks, StateBatch, canvas_hidden
from jax_unmask.learners.surrogates import States
from jax_unmask.rollout.trajectory import Prompts
from jax_unmask.settings import Settings, given, setting


@dataclasses.dataclass(frozen=True)
class ValueSettings(Settings):
    """Settings of a value model that is trained beside the denoiser, by its own optimiser."""

    optimizer: optax.GradientTransformation = given()
    enabled: bool = setting(
        False, "Train a value model: its advantages replace those of whole responses."
    )
    lr: float = setting(5e-6, "Its peak learning rate.", gt=0, le=100)
    gamma: float = setting(1.0, "Discount per step of a trace.", ge=0, le=1)
    lam: float = setting(1.0, "Lambda of GAE.", ge=0, le=1)
    clip: float = setting(
        0.2, "How far a value may move within a batch while its gradient lasts.", gt=0, le=1e6
    )


def init_value_model(params: Params, adapters: Params | None = None) -> Params:
    """A value model that starts as a copy of a denoiser, with a head of zeros.

    Its values are therefore 0 at first, and the first advantages those without a value model
    (arXiv 2509.06949, section 4.2). It works for every family: all it takes of a denoiser is its
    hidden states. The denoiser's output projection, which it has no use for, is left out where it
    is not the embedding table.

    Args:
        params: parameters of the denoiser.
        adapters: what is trained of it, if that is not all (see `denoisers.adapters`). The value
            model then has adapters of its own on the same frozen parameters.

    Returns:
        {"backbone": a copy of the denoiser's trunk or of the adapters, "head": float zeros [D]}.
    """
    trunk = {name: tree for name, tree in params.items() if name != "head"}
    table = params["embedding"]
    return {
        "backbone": jax.tree.map(jnp.copy, trunk if adapters is None else adapters),
        "head": jnp.zeros(table.shape[-1], table.dtype if adapters is None else jnp.float32),
    }


def token_values(
    denoiser: Any,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "C L"],
    states: States,
    blocks: AttentionBlocks | None = None,
) -> Float[Array, "C L"]:
    """Values of all canvas positions of C states, float32; those of masked positions count.

    Args: as of `canvas_hidden`, with `params` of `init_value_model`.
    """
    trunk = params["backbone"]
    if not denoiser.config.tie_embeddings:
        # The module asks for its projection though nothing reads it: none of this is executed.
        trunk = {**trunk, "head": jnp.zeros_like(trunk["embedding"])}
    hidden = canvas_hidden(denoiser, trunk, prompts, tokens, states, blocks)
    return hidden.astype(jnp.float32) @ params["head"].astype(jnp.float32)


def train_values(
    batch: StateBatch,
    settings: ValueSettings,
    params: Params,
    opt_state: optax.OptState,
    rewards: Float[Array, "B L"],
    passes: int,
    minibatches: int,
) -> tuple[Float[Array, "B L"], Optimised, Metrics]:
    """All optimiser steps of the value model on one batch, with a reward for each token.

    The states of the responses are those of `Trace`, the same in all passes.

    Returns:
        The advantages over the values before training, the steps, and the metrics of
        `TraceLearner.update`.
    """
    learner = batch.settings

    def values_of(params: Params, at: Chunk, states: States) -> Float[Array, "C L"]:
        whole = {**params, "backbone": batch.whole(params["backbone"])}
        return token_values(learner.denoiser, whole, *batch.take(at), states, learner.blocks)

    # 1. The values that training starts from, and what they should have been.
    def scores(at: Chunk) -> tuple[Array, Array, Array]:
        states = batch.states(0, at)
        return values_of(params, at, states), jnp.zeros_like(at.step), states.trained

    old = batch.collect(scores, 0)[0]
    counted = batch.canvas.trainable & batch.kept[:, None]
    returns, advantages = trace_gae(
        rewards, old, batch.canvas.time, counted, settings.gamma, settings.lam
    )

    # 2. The optimiser steps.
    def gradient(
        params: Params, index: Array, cells: Minibatches, minibatch: Minibatch
    ) -> tuple[Params, Sums]:
        def loss(params: Params, at: Chunk) -> tuple[Array, Sums]:
            states = batch.states(index, at)
            per_token = clipped_value_loss(
                values_of(params, at, states), old[at.row], returns[at.row], settings.clip
            )
            total = jnp.sum(batch.weights(states) * per_token) / minibatch.count
            return total, Sums.of(loss=total)

        return accumulate(loss, params, cells, minibatch, learner.chunk_size, batch.shards)

    split = functools.partial(batch.minibatches, number=minibatches)
    done = optimise(gradient, split, settings.optimizer, params, opt_state, passes)
    # 3. How good the values were.
    found = done.metrics()
    count = jnp.maximum(jnp.sum(counted), 1)
    centre = jnp.sum(returns) / count
    variance = jnp.sum(jnp.where(counted, jnp.square(returns - centre), 0.0)) / count
    error = jnp.sum(jnp.square(jnp.where(counted, old - returns, 0.0))) / count
    metrics = {
        "value_loss": found["loss"],
        "value_grad_norm": found["grad_norm"],
        "value_error": jnp.sqrt(error),
        "return_deviation": jnp.sqrt(variance),
    }
    return advantages, done, metrics
