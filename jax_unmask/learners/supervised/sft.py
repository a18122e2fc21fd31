"""Supervised training of a denoiser with the masked-diffusion objective."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sharding import keep
from jax_unmask.learners.engine import Metrics, descend
from jax_unmask.learners.state import Params, TrainState, zero_step
from jax_unmask.learners.supervised.corruption import Corruption, Masking, corrupt
from jax_unmask.rollout.trajectory import Prompts
from jax_unmask.runtime import streams
from jax_unmask.settings import Settings, given, setting


@struct.dataclass
class SftBatch:
    """Prompts and the responses that the denoiser should learn to give.

    Attributes:
        prompts: left-padded prompts; never masked, never a target.
        targets: responses, filled up with EOS to the canvas length. The EOS count as response:
            it is from them that the denoiser learns where to stop (arXiv 2502.09992, section 2.3).
    """

    prompts: Prompts
    targets: Int[Array, "B L"]


def masked_cross_entropy(
    denoiser: Any,
    params: Params,
    batch: SftBatch,
    corruption: Corruption,
    positions_per_chunk: int = 0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted cross-entropy of the hidden tokens, and the denoiser's accuracy on them.

    loss = 1 / (B L) * sum over tokens of weight * -log p(target | prompt, corrupted response)

    With the weights 1/t of `Masking`'s random rows this is eq. 5 of arXiv 2502.09992, whose
    expectation bounds the negative log-likelihood per response token. The vocabulary head runs on
    the L response positions only; with `positions_per_chunk` its logits exist for that many
    positions of each row at a time, in the backward pass too.

    Args:
        denoiser: module with the methods "hidden" and "logits"; its config names the mask token.
        params: parameters of the denoiser.
        batch: prompts and targets.
        corruption: which targets are hidden and what they weigh.
        positions_per_chunk: response positions whose logits are alive at once; must divide L.
            0 takes all.

    Returns:
        The loss, and the share of the masked tokens that the arg max gets right.
    """
    rows, length = batch.targets.shape
    chunk = positions_per_chunk or length
    if length % chunk:
        raise ValueError(
            f"positions_per_chunk={chunk} does not divide the response length {length}; "
            "choose a divisor, or 0 for all positions at once"
        )
    noisy = jnp.where(corruption.masked, denoiser.config.mask_token_id, batch.targets)
    tokens = jnp.concatenate([batch.prompts.tokens, noisy], axis=1)
    real = jnp.concatenate([batch.prompts.mask, jnp.ones((rows, length), bool)], axis=1)
    variables = {"params": params}
    hidden = denoiser.apply(variables, tokens, attention_mask=real, method="hidden")
    hidden = hidden[:, batch.prompts.tokens.shape[1] :]

    def head(
        hidden: Float[Array, "B C D"],
        targets: Int[Array, "B C"],
        weight: Float[Array, "B C"],
        masked: Bool[Array, "B C"],
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        logits = denoiser.apply(variables, hidden, method="logits").astype(jnp.float32)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        right = masked & (jnp.argmax(logits, axis=-1) == targets)
        return jnp.sum(weight * entropy), jnp.sum(right)

    columns = (hidden, batch.targets, corruption.weight, corruption.masked)
    if chunk == length:
        loss, right = head(*columns)
    else:
        chunked = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0), columns
        )
        # Without rematerialisation the backward pass would keep every chunk's logits.
        losses, rights = jax.lax.map(lambda x: jax.checkpoint(head)(*x), chunked)
        loss, right = jnp.sum(losses), jnp.sum(rights)
    masked = jnp.maximum(jnp.sum(corruption.masked), 1)
    return loss / (rows * length), right / masked


@dataclasses.dataclass(frozen=True)
class SftLearner(Settings):
    """Trains a denoiser; hashable, so that one instance is one compiled step.

    Attributes:
        denoiser: the module to train.
        optimizer: see `optim.OptimizerSettings`.
        masking: how rows are masked.
    """

    denoiser: Any = given()
    optimizer: optax.GradientTransformation = given()
    masking: Masking = given(Masking())
    ema_decay: float = setting(
        0.998,
        "Decay of the exponential moving average of the parameters, 0 for none; early on the "
        "smaller (1 + step) / (10 + step), so that the average forgets where it started.",
        ge=0,
        lt=1,
    )
    positions_per_chunk: int = setting(
        0, "Positions whose logits are alive at once; 0 for all.", ge=0
    )

    def init(self, params: Params, key: Array) -> TrainState:
        """The state before the first step.

        Args:
            params: initial parameters of the denoiser.
            key: typed PRNG key of the run.
        """
        # The step donates its state: a copy keeps the caller's parameters alive, and keeps one
        # buffer from being donated twice.
        params = jax.tree.map(jnp.copy, params)
        ema = jax.tree.map(jnp.copy, params) if self.ema_decay else None
        opt_state = self.optimizer.init(params)
        return TrainState(
            step=zero_step(), params=params, opt_state=opt_state, key=jnp.copy(key), ema=ema
        )

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(self, state: TrainState, batch: SftBatch) -> tuple[TrainState, Metrics]:
        """Takes one optimiser step on one batch. The state passed in is donated: use the new one.

        Args:
            state: the training state.
            batch: B rows.

        Returns:
            The new state, and `loss`, `masked_accuracy`, `masked_fraction` and `grad_norm` (before
            clipping).
        """
        corruption = corrupt(
            self.masking, streams.stream(state.step_key(), "masking"), *batch.targets.shape
        )

        def loss_fn(params: Params) -> tuple[Float[Array, ""], Float[Array, ""]]:
            return masked_cross_entropy(
                self.denoiser, params, batch, corruption, self.positions_per_chunk
            )

        (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        params, opt_state, norm = descend(self.optimizer, state.params, state.opt_state, grads)
        ema = state.ema
        if self.ema_decay:
            decay = jnp.minimum(self.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update(params, ema, 1.0 - decay)
        new_state = keep(
            dataclasses.replace(
                state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema
            )
        )
        metrics = {
            "loss": loss,
            "masked_accuracy": accuracy,
            "masked_fraction": jnp.mean(corruption.masked, dtype=jnp.float32),
            "grad_norm": norm,
        }
        return new_state, metrics
