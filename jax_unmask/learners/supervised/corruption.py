"""Masks of supervised training: hidden response tokens and their weights."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_unmask.settings import Settings, setting


class Corruption(NamedTuple):
    """The hidden tokens of a batch of responses.

    Attributes:
        masked: the token is replaced by the mask token.
        weight: what the token's cross-entropy counts, 0 where it is not a target. The loss is
            sum(weight * cross_entropy) / (B * L).
    """

    masked: Bool[Array, "B L"]
    weight: Float[Array, "B L"]


@dataclasses.dataclass(frozen=True)
class Masking(Settings):
    """Settings of the masks of training rows.

    Every row is one of two kinds.

    *Random rows* draw t ~ U(min_ratio, 1) and mask each token with probability t; masked tokens
    weigh 1/t. That is the masked-diffusion bound of arXiv 2502.09992, eq. 3 and, for responses to
    a prompt, eq. 5.

    *Suffix rows* are the states that a semi-autoregressive sampler visits: a uniformly drawn block
    is masked at a random ratio t, everything to its right is masked, everything to its left is
    clear. Random rows hardly ever look like that, and where a token is repeated further right they
    teach a small model to copy it from there instead of working it out.
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
        return Corruption(masked=hit, weight=weight)

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
    return Corruption(
        masked=jnp.where(is_suffix, suffix_masked, hit),
        weight=jnp.where(is_suffix, suffix_weight, weight),
    )
