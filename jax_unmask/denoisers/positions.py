"""Positions of a sequence: which there are, which see each other, and picking some of each row."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped


def window_of(
    values: Shaped[Array, "#B S ..."], width: int, start: Int[Array, " B"] | None = None
) -> Shaped[Array, "#B W ..."]:
    """W = `width` positions of each row, from `start` on (clipped to those that there are).

    By default the last W.
    """
    if start is None:
        return values[:, -width:]
    at = jnp.clip(start[:, None] + jnp.arange(width), 0, values.shape[1] - 1)
    values = jnp.broadcast_to(values, (start.shape[0], *values.shape[1:]))
    return jax.vmap(lambda row, at: row[at])(values, at)


def unshift(
    hidden: Float[Array, "B L D"],
    attention_mask: Bool[Array, "B S"] | None,
    start: Int[Array, " B"] | None = None,
) -> Float[Array, "B L D"]:
    """Moves hidden states that score the next token to the position of the token that they score.

    The first token of a text has none before it; its own state stays, as in the published code.

    `hidden` are states of L of S positions (which: see `window_of`); if L < S, the first of them
    has none to get.
    """
    moved = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
    if attention_mask is None:
        return moved
    is_first = attention_mask & (jnp.cumsum(attention_mask, axis=-1) == 1)
    is_first = window_of(is_first, hidden.shape[1], start)
    return jnp.where(is_first[..., None], hidden, moved)


@struct.dataclass
class Bounds:
    """Attention rule: a query sees the keys between whose bounds its label lies.

    Full attention, blocks, a text beside its copy and padding are rules of this kind.
    """

    label: Int[Array, "#B Q"]
    low: Int[Array, "#B K"]
    high: Int[Array, "#B K"] | None = None  # None for no upper bounds.

    def visible(self) -> Bool[Array, "#B Q K"]:
        """True where a query sees a key."""
        label = self.label[..., None]
        seen = label >= self.low[:, None]
        return seen if self.high is None else seen & (label <= self.high[:, None])


@struct.dataclass
class Leading:
    """Attention rule: all queries of a row see its first keys, so many; the others are padding."""

    count: Int[Array, " B"]

    def visible(self, keys: int) -> Bool[Array, "B 1 K"]:
        """True where a query sees a key."""
        return (jnp.arange(keys) < self.count[:, None])[:, None]


NEVER = np.iinfo(np.int32).max
"""A lower bound above all labels."""


def block_causal(
    positions: Int[Array, "#B S"], block: int, real: Bool[Array, "B S"] | None = None
) -> Bounds:
    """A position attends to its block and those before it, but not to padding.

    >>> block_causal(jnp.arange(4)[None], 2).visible().astype(int).tolist()
    [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]]
    """
    blocks = positions // block
    return Bounds(blocks, blocks if real is None else jnp.where(real, blocks, NEVER))


def default_positions(attention_mask: Bool[Array, "B S"] | None, length: int) -> Int[Array, "#B S"]:
    """The number of real tokens before each one; 0, 1, 2, ... where nothing is padded.

    >>> default_positions(jnp.array([[False, False, True, True], [True, False, True, True]]), 4)
    Array([[0, 0, 0, 1],
           [0, 0, 1, 2]], dtype=int32)
    """
    if attention_mask is None:
        return jnp.arange(length, dtype=jnp.int32)[None]
    return jnp.maximum(jnp.cumsum(attention_mask, axis=-1, dtype=jnp.int32) - 1, 0)
