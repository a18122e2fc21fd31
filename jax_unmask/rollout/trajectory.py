"""What goes into a rollout and what comes out of it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sampling import PLAIN, Sampling
from jax_unmask.policies.base import Action, Observation


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """The static shape of a rollout.

    Attributes:
        gen_length: canvas length L.
        block_length: block length BL; L must be a multiple of it. BL = L is full diffusion. With a
            block-causal denoiser it is also the length of the blocks that attend to each other, and
            blocks are counted from the start of the text: a row's first block is what the prompt
            leaves of one, its last what remains of the canvas.
        temperature: denoiser temperature; 0 takes the arg max, above 0 a Gumbel-max sample.
        record: whether the trajectory keeps each step's observation and action (learners need it,
            evaluation does not).
        guidance: scale of classifier-free guidance without a trained null prompt (LLaDA, arXiv
            2502.09992, appendix): above 0 each step runs the denoiser a second time with the prompt
            masked out. NFE still counts steps.
        vocab_chunk: vocabulary entries whose logits exist at one time; None for all of them.
        slots: rows that the denoiser serves at one time; None for all of the batch. With fewer
            slots than rows, a row that is done leaves its slot to the next one that waits. Rows get
            the same either way; what differs is time (few forwards are spent on rows that are
            done) and memory.
        slot_groups: parts into which rows and slots are divided, in order; a slot only ever gets
            rows of its own part. Where the batch is spread over several devices (the data and
            fsdp axes of the mesh), give their number: rows then never move between devices.
        sampling: top-k and top-p of the draw, and what a confidence is.
        stop_ids: tokens that end a text. A row is done with the first block that leaves one of them
            on its canvas; the blocks behind stay masked. Empty: canvases are filled to the end.
    """

    gen_length: int
    block_length: int
    temperature: float = 0.0
    record: bool = False
    guidance: float = 0.0
    vocab_chunk: int | None = None
    slots: int | None = None
    slot_groups: int = 1
    sampling: Sampling = PLAIN
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length", "slot_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.gen_length % self.block_length:
            raise ValueError(
                f"gen_length={self.gen_length} is not divisible by "
                f"block_length={self.block_length}; choose a block length that divides it "
                f"(block_length={self.gen_length} is full diffusion)"
            )
        for name in ("temperature", "guidance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.slots is not None and (self.slots < 1 or self.slots % self.slot_groups):
            raise ValueError(
                f"slots={self.slots} must be a positive multiple of slot_groups="
                f"{self.slot_groups}; give None for one slot per row"
            )

    def num_slots(self, rows: int) -> int:
        """Slots of a rollout of so many rows.

        Raises:
            ValueError: the rows do not divide among the groups.
        """
        if rows % self.slot_groups:
            raise ValueError(
                f"{rows} rows do not divide among slot_groups={self.slot_groups}; give a multiple "
                "of it"
            )
        return rows if self.slots is None else min(self.slots, rows)


@struct.dataclass
class Prompts:
    """A batch of left-padded prompts.

    Attributes:
        tokens: token ids.
        mask: True where a token is real, False where it is padding (never attended).
        present: rows that exist; None for all. The others only fill up a batch: they are never
            rolled out, their canvases stay empty and they cost nothing behind the last row.
    """

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    present: Bool[Array, " B"] | None = None


@struct.dataclass
class Records:
    """Every step of a rollout, time-major (T: a row's step limit, gen_length without edits).

    Attributes:
        obs: observations, each leaf [T, B, ...].
        action: actions, each leaf [T, B, ...].
        active: the row still had a position to fill at this step; steps that are not active hold
            zeros and count for nothing.
    """

    obs: Observation
    action: Action
    active: Bool[Array, "T B"]


@struct.dataclass
class Trajectory:
    """The result of one rollout of B rows.

    Attributes:
        prompts: the prompts it started from.
        tokens: final canvas; holds the mask token where a policy never filled a position.
        step_map: index of the row's own step that filled each position (or last edited it), -1 if
            none did.
        confidence: probability of the token when it was written, 0 where nothing was.
        nfe: denoiser forwards that the row needed.
        forwards: forwards that were executed (a scalar), each of all slots.
        slots: rows per forward.
        records: per-step records, or None.
    """

    prompts: Prompts
    tokens: Int[Array, "B L"]
    step_map: Int[Array, "B L"]
    confidence: Float[Array, "B L"]
    nfe: Int[Array, " B"]
    forwards: Int[Array, ""]
    slots: int = struct.field(pytree_node=False)
    records: Records | None = None

    @property
    def useful_forward_fraction(self) -> Float[Array, ""]:
        """Part of the executed row forwards that a row still needed."""
        return jnp.sum(self.nfe) / (self.slots * self.forwards)
