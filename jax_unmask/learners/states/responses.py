"""Responses and their traces: the tokens that are trained, and steps that are merged."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jax_unmask.rollout.trajectory import Prompts


@struct.dataclass
class Responses:
    """Responses, and the order in which the denoiser wrote them.

    Token ids are those of the rollout itself; text is never tokenized again.

    Attributes:
        prompts: left-padded prompts.
        tokens: final canvases; the mask token stands where nothing was ever filled in.
        step_map: index of the row's own step that filled each position, -1 if none did.
    """

    prompts: Prompts
    tokens: Int[Array, "B L"]
    step_map: Int[Array, "B L"]


def trainable_tokens(
    tokens: Int[Array, "B L"],
    step_map: Int[Array, "B L"],
    pad_id: int,
    num_pads: int,
    end_ids: tuple[int, ...] = (),
) -> Bool[Array, "B L"]:
    """The tokens that a response is trained on: all that were filled in, but for most padding.

    The end of a canvas is padding (in many families the very token that ends the text). A model
    that is trained on all of it learns to stop early; one that is trained on none of it may never
    learn to stop (arXiv 2509.06949, appendix B.5).

    Args:
        tokens: canvases.
        step_map: see `Responses`.
        pad_id: the token that fills up a canvas.
        num_pads: how many padding tokens of each row are trained, its first ones (n_pad of the
            paper; 1 trains the end of a text where end and padding are one token). -1 for all.
        end_ids: tokens that end a text; tokens after the first of them are padding too, since no
            reward depends on it.
    """
    filled = step_map >= 0
    if num_pads < 0:
        return filled
    pads = tokens == pad_id
    if end_ids:
        ends = jnp.isin(tokens, jnp.asarray(end_ids, tokens.dtype))
        pads |= jnp.cumsum(ends, axis=-1) - ends > 0
    return filled & (~pads | (jnp.cumsum(pads, axis=-1) <= num_pads))


def merged_steps(
    step_map: Int[Array, "B L"], shrink: int, block_of: Int[Array, "#B L"] | None = None
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """Merges every `shrink` neighbouring steps of a trace: arXiv 2509.06949, section 4.1.

    Steps are counted as they occur: of the distinct steps of a row in ascending order, the first
    `shrink` make group 0, and so on, the last group possibly smaller. With blocks, the steps of
    each block are grouped by themselves, so that no group crosses a block.

    Args:
        step_map: step of each position, -1 where nothing was filled; such a position goes with the
            last step of its row or block.
        shrink: s, how many steps make one (static); 1 keeps the trace as it is.
        block_of: block of each position, rising along a row by at most 1 from one position to the
            next; None for one block.

    Returns:
        The group of each position, counted from 0 within its row or block; and the last step of
        that group, which orders the groups of all blocks in time.

    Raises:
        ValueError: `shrink` is below 1.
    """
    if shrink < 1:
        raise ValueError(f"shrink={shrink} must be at least 1")
    blocks = jnp.zeros((1, 1), jnp.int32) if block_of is None else block_of - block_of[:, :1]
    merge = functools.partial(_merged_steps_of_row, shrink=shrink)
    return jax.vmap(merge)(step_map, jnp.broadcast_to(blocks, step_map.shape))


def _merged_steps_of_row(
    step: Int[Array, " L"], block: Int[Array, " L"], *, shrink: int
) -> tuple[Int[Array, " L"], Int[Array, " L"]]:
    length = step.shape[0]
    last_of_block = jnp.zeros_like(step).at[block].max(step)
    step = jnp.where(step < 0, last_of_block[block], step)
    order = jnp.lexsort((step, block))
    ordered, block = step[order], block[order]
    new_block = jnp.diff(block, prepend=-1) != 0
    new_step = new_block | (jnp.diff(ordered, prepend=-1) != 0)
    rank = jnp.cumsum(new_step) - 1
    group = (rank - jax.lax.cummax(jnp.where(new_block, rank, 0))) // shrink
    # In this order a group ends with its last step; going back from the end of the row, the nearest
    # end of a group is the smallest pair (block, step) so far.
    ends = (jnp.diff(group, append=-1) != 0) | jnp.roll(new_block, -1)
    base = jnp.max(step) + 1
    pair = jnp.where(ends, block * base + ordered, jnp.iinfo(jnp.int32).max)
    last = jax.lax.cummin(pair, reverse=True) % jnp.maximum(base, 1)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(length))
    return group[place].astype(jnp.int32), last[place].astype(jnp.int32)
