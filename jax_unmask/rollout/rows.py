"""Rows of a rollout: their state, and where the blocks of their canvases lie."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jax_unmask.rollout.trajectory import Prompts, RolloutSettings


class Rows(NamedTuple):
    """State of the rows; L canvas positions."""

    canvas: Int[Array, "B L"]
    step_map: Int[Array, "B L"]
    confidence: Array
    step: Int[Array, " B"]
    block: Int[Array, " B"]
    step_in_block: Int[Array, " B"]
    post_steps: Int[Array, " B"]


class RunningBatch(NamedTuple):
    """The rows in the slots.

    Attributes:
        rows: where they stand.
        prompts: their prompts.
        keys: their random streams.
        positions: of prompt and canvas in the text, see `positions.default_positions`.
    """

    rows: Rows
    prompts: Prompts
    keys: Array
    positions: Int[Array, "S K"]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of canvases.

    Attributes:
        settings: shape of the rollout.
        from_text: whether blocks are counted from the start of the text, as block-causal denoisers
            do, and not from that of the canvas.
    """

    settings: RolloutSettings
    from_text: bool

    @property
    def number(self) -> int:
        """Number of blocks of a canvas; a row in this block is done."""
        # Blocks that are counted from the start of the text may be cut at both ends of the canvas.
        return self.settings.gen_length // self.settings.block_length + self.from_text

    def taken_by_prompt(self, batch: RunningBatch) -> Int[Array, " S"]:
        """Positions of a row's first block that its prompt has taken."""
        if not self.from_text:
            return jnp.zeros(batch.rows.block.shape, jnp.int32)
        length = batch.prompts.mask.sum(axis=-1, dtype=jnp.int32)
        return length % self.settings.block_length

    def of_positions(self, batch: RunningBatch) -> Int[Array, "S L"]:
        """The block of each canvas position."""
        positions = jnp.arange(self.settings.gen_length)
        return (self.taken_by_prompt(batch)[:, None] + positions) // self.settings.block_length

    def start(self, batch: RunningBatch) -> Int[Array, " S"]:
        """First canvas position of the current block."""
        start = batch.rows.block * self.settings.block_length - self.taken_by_prompt(batch)
        return jnp.maximum(start, 0)

    def window_start(self, batch: RunningBatch, width: int) -> Int[Array, " S"]:
        """First of `width` canvas positions that hold the current block.

        Blocks may be cut at both ends of the canvas; a window of their width is not.
        """
        return jnp.minimum(self.start(batch), self.settings.gen_length - width)
