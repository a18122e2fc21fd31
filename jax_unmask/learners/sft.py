"""Supervised training of a denoiser with the masked-diffusion objective."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sharding import keep
from jax_unmask.denoisers.transformer import output_table
from jax_unmask.learners.engine import Metrics, Params, TrainState, descend
from jax_unmask.learners.states import TokenSettings, canvas_hidden
from jax_unmask.learners.surrogates import States
from jax_unmask.learners.token_log_prob import score_tokens
from jax_unmask.rollout.trajectory import Prompts
from jax_unmask.runtime import streams
from jax_unmask.settings import Settings, given, setting, setting_of


class Corruption(NamedTuple):
    """The hidden tokens of a batch of responses.

    Attributes:
        masked: the token is replaced by the mask token.
        weight: what the token's cross-entropy counts, 0 where it is not a target. The loss is
            sum(weight * cross_entropy) / (B * L).
        causal: the row's attention is causal; None if that of none is.
    """

    masked: Bool[Array, "B L"]
    weight: Float[Array, "B L"]
    causal: Bool[Array, " B"] | None = None


@dataclasses.dataclass(frozen=True)
class Masking(Settings):
    """Settings of the masks of training rows.

    Every row is one of three kinds.

    *Random rows* draw t ~ U(min_ratio, 1) and mask each token with probability t; masked tokens
    weigh 1/t. That is the masked-diffusion bound of arXiv 2502.09992, eq. 3 and, for responses to
    a prompt, eq. 5.

    *Suffix rows* are the states that a semi-autoregressive sampler visits: a uniformly drawn block
    is masked at a random ratio t, everything to its right is masked, everything to its left is
    clear. Random rows hardly ever look like that, and where a token is repeated further right they
    teach a small model to copy it from there instead of working it out.

    *Causal rows* have nothing masked. A response token attends to those before it and to the
    prompt, the prompt to itself, and each token is the target of the one before it, with weight 1.
    They train all tokens of a response at once, given what comes before them, which a masked row
    shows for few. For families whose logits are shifted.
    """

    min_ratio: float = setting(1e-3, "Smallest mask ratio t of a random row.", gt=0, lt=1)
    max_weight: float | None = setting(
        None,
        "Upper limit of the weight 1/t, which has infinite variance without one as min_ratio goes "
        "to 0; None for no limit.",
        ge=1,
    )
    stratified: bool = setting(
        True,
        "Spread the t of a batch evenly over their range, t_b = u + b/B (mod 1), which keeps each "
        "t uniform and takes variance out of the batch mean (arXiv 2107.00630).",
    )
    suffix_fraction: float = setting(0.0, "Probability that a row is a suffix row.", ge=0, le=1)
    suffix_block_length: int = setting(
        1, "Block length of suffix rows, a divisor of the response length.", ge=1
    )
    suffix_target: Literal["all", "block"] = setting(
        "all",
        "all trains every masked token of a suffix row, each weighing L / (masked tokens of the "
        "row), so that a row counts one mean cross-entropy; block trains the drawn block alone "
        "with weight blocks / t, the bound of block diffusion (arXiv 2503.09573).",
    )
    causal_fraction: float = setting(
        0.0,
        "Share of the rows of a batch that are causal rows; of families whose logits are shifted.",
        ge=0,
        le=1,
    )


def corrupt(masking: Masking, key: Array, batch: int, length: int) -> Corruption:
    """Draws the masks and weights of a batch.

    Apart from the shared offset of stratified ratios, row b draws from `fold_in(key, b)` alone.

    Args:
        masking: how to mask.
        key: typed PRNG key of this step.
        batch: number of rows B (static).
        length: response length L (static).

    Raises:
        ValueError: suffix rows are wanted and their block length does not divide `length`.
    """
    if masking.suffix_fraction > 0 and length % masking.suffix_block_length:
        raise ValueError(
            f"suffix_block_length={masking.suffix_block_length} does not divide the response "
            f"length {length}; choose a block length that divides it"
        )
    row_key, offset_key = jax.random.split(key)
    rows = jnp.arange(batch)
    keys = jax.vmap(lambda row: jax.random.fold_in(row_key, row))(rows)
    draws = jax.vmap(lambda k: jax.random.uniform(k, (length + 3,)))(keys)
    unit, kind, place, token = draws[:, 0], draws[:, 1], draws[:, 2], draws[:, 3:]
    if masking.stratified:
        unit = (jax.random.uniform(offset_key) + rows / batch) % 1.0
    ratio = masking.min_ratio + (1.0 - masking.min_ratio) * unit
    ratio_weight = 1.0 / ratio
    if masking.max_weight is not None:
        ratio_weight = jnp.minimum(ratio_weight, masking.max_weight)

    hit = token < ratio[:, None]
    weight = jnp.where(hit, ratio_weight[:, None], 0.0)
    if masking.suffix_fraction == 0:
        return _with_causal_rows(masking, Corruption(masked=hit, weight=weight))

    blocks = length // masking.suffix_block_length
    # floor(u * blocks) < blocks holds for u < 1 in exact arithmetic; float32 may round up to it.
    chosen = jnp.minimum((place * blocks).astype(jnp.int32), blocks - 1)[:, None]
    block = jnp.arange(length)[None, :] // masking.suffix_block_length
    suffix_masked = jnp.where(block == chosen, hit, block > chosen)
    if masking.suffix_target == "all":
        count = jnp.sum(suffix_masked, axis=1, keepdims=True)
        suffix_weight = jnp.where(suffix_masked, length / jnp.maximum(count, 1), 0.0)
    else:
        suffix_weight = jnp.where(block == chosen, blocks * weight, 0.0)

    is_suffix = (kind < masking.suffix_fraction)[:, None]
    masked = jnp.where(is_suffix, suffix_masked, hit)
    weight = jnp.where(is_suffix, suffix_weight, weight)
    return _with_causal_rows(masking, Corruption(masked=masked, weight=weight))


def _with_causal_rows(masking: Masking, drawn: Corruption) -> Corruption:
    if masking.causal_fraction == 0:
        return drawn
    # Spread over the batch, so that the mask ratios of the other rows stay spread as well.
    count = np.floor(masking.causal_fraction * np.arange(len(drawn.masked) + 1))
    causal = jnp.asarray(np.diff(count) > 0)
    return Corruption(
        masked=drawn.masked & ~causal[:, None],
        weight=jnp.where(causal[:, None], 1.0, drawn.weight),
        causal=causal,
    )


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
    expectation bounds the negative log-likelihood per response token.

    Args:
        denoiser: the denoiser; its config names the mask token.
        params: its parameters.
        batch: prompts and targets.
        corruption: which targets are hidden and what they weigh.
        positions_per_chunk: response positions whose logits are alive at once, see `score_tokens`.

    Returns:
        The loss, and the share of the masked tokens that are the most probable ones.
    """
    weighs = corruption.masked | (corruption.weight > 0)
    states = States(masked=corruption.masked, trained=weighs, causal=corruption.causal)
    hidden = canvas_hidden(denoiser, params, batch.prompts, batch.targets, states)
    log_prob, is_best = score_tokens(
        output_table(denoiser.config, params),
        hidden.reshape(-1, hidden.shape[-1]),
        batch.targets.reshape(-1),
        weighs.reshape(-1),
        positions_per_chunk,
    )
    loss = -jnp.sum(corruption.weight.reshape(-1) * log_prob) / batch.targets.size
    right = jnp.sum(corruption.masked.reshape(-1) & is_best)
    return loss, right / jnp.maximum(jnp.sum(corruption.masked), 1)


@dataclasses.dataclass(frozen=True)
class SftLearner(Settings):
    """Trains a denoiser; hashable, so that one instance is one compiled step."""

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
    positions_per_chunk: int = setting_of(TokenSettings, "positions_per_chunk", default=0)

    def init(self, params: Params, key: Array) -> TrainState:
        """The state before the first step, from initial parameters and the run's key."""
        # The step donates its state: a copy keeps the caller's parameters alive, and keeps one
        # buffer from being donated twice.
        params = jax.tree.map(jnp.copy, params)
        ema = jax.tree.map(jnp.copy, params) if self.ema_decay else None
        opt_state = self.optimizer.init(params)
        return TrainState.first(params, opt_state, jnp.copy(key), ema)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(self, state: TrainState, batch: SftBatch) -> tuple[TrainState, Metrics]:
        """Takes one optimiser step on one batch. The state passed in is donated: use the new one.

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
        return keep(state.after(params, opt_state, ema)), {
            "loss": loss,
            "masked_accuracy": accuracy,
            "masked_fraction": jnp.mean(corruption.masked, dtype=jnp.float32),
            "grad_norm": norm,
        }
