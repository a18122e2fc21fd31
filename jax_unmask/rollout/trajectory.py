"""Inputs and results of a rollout."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sampling import PLAIN, Sampling
from jax_unmask.policies.base import Action, Observation
from jax_unmask.prompts import Prompts as Prompts
from jax_unmask.rollout.caching import NONE, Cache, parse_cache
from jax_unmask.runtime import accelerators
from jax_unmask.runtime.accelerators import Accelerator
from jax_unmask.settings import Settings, given, setting

Watcher = Callable[[np.ndarray, np.ndarray], None]
"""Gets canvases [B, L] and step maps [B, L] after each iteration, while the rollout runs."""


_ROWS_PER_SLOT = 20
"""Slots are idle from their last row's end to the end of all: 3 to 5 % of the time with so many
rows one after the other in each (docs/scaling/README.md)."""
_FORWARD_TOKENS = 256
"""Positions of a forward on accelerators that are in no table, see `Accelerator.balance`."""
_SHARED_LENGTH = 32
"""Longest canvas whose rows share their first forward on TPUs: those of longer ones take so many
forwards that one hardly matters, and a program with two takes half as long again to compile, which
there is minutes (docs/scaling/README.md)."""


@dataclasses.dataclass(frozen=True)
class RolloutSettings(Settings):
    """The static shape of a rollout.

    With a block-causal denoiser `block_length` is also the length of the blocks that attend to each
    other, and blocks are counted from the start of the text: a row's first block is what the prompt
    leaves of one, its last what remains of the canvas.

    Attributes:
        record: whether the trajectory keeps each step's observation and action (learners need it,
            evaluation does not).
        slot_groups: parts into which rows and slots are divided, in order; a slot only ever gets
            rows of its own part. Where the batch is spread over several devices (the data and
            fsdp axes of the mesh), give their number: rows then never move between devices.
        prompt_rows: so many rows next to each other have the same prompt. Without a cache they
            share their first forward, of a canvas of masks (on TPUs if it is short); with cache
            "block" the prompt's keys and values.
        sampling: top-k and top-p of the draw, and what a confidence is.
        stop_ids: tokens that end a text. A row is done with the first block that leaves one of them
            on its canvas; later blocks stay masked. Empty: canvases are filled to the end.
    """

    gen_length: int = setting(256, "Canvas length L in tokens.", ge=1, le=2**17)
    block_length: int = setting(
        32, "Block length BL in tokens, a divisor of L; BL = L is full diffusion.", ge=1
    )
    temperature: float = setting(
        0.0, "Denoiser temperature; 0 takes the arg max, above 0 a Gumbel-max sample.", ge=0, le=1e4
    )
    record: bool = False
    guidance: float = setting(
        0.0,
        "Scale of classifier-free guidance without a trained null prompt (LLaDA, arXiv 2502.09992, "
        "appendix): above 0 each step runs the denoiser a second time with the prompt masked out, "
        "which NFE does not count.",
        ge=0,
        le=1e4,
    )
    vocab_chunk: int | None = setting(
        None, "Vocabulary entries whose logits exist at one time; None for all of them.", ge=1
    )
    slots: int = setting(
        0,
        "Rows in the running batch: a waiting row takes the slot of a row that is done, and any "
        "number gives the same rollouts. 0 for all on CPUs, and elsewhere for so few that 95 % of "
        "the forwards are useful, unless a forward with more takes no longer.",
        ge=0,
        exempt=True,
    )
    slot_groups: int = 1
    prompt_rows: int = 1
    sampling: Sampling = given(PLAIN)
    stop_ids: tuple[int, ...] = ()
    cache: Cache | None = setting(
        NONE,
        "Keys and values that are kept from step to step: none, prefix, dual or block, with "
        "settings as in dual:refresh_every=8,extra_tokens=16.",
        parse=parse_cache,
    )

    def check(self) -> None:
        self.require_divides("block_length", "gen_length")
        if self.slot_groups < 1:
            raise ValueError(f"slot_groups={self.slot_groups} must be at least 1")
        self.require(
            self.slots % self.slot_groups == 0,
            "slots",
            f"it is no multiple of slot_groups={self.slot_groups}",
            "Give a multiple, or 0 for one slot per row",
        )
        self.require(
            self.cache is None or not self.guidance,
            "guidance",
            "it needs a second forward per step, for which there is no `cache`",
            "Set it to 0, or `cache` to 'none' (None)",
        )

    @property
    def environment(self) -> dict[str, str | int]:
        """Settings that a policy's forwards depend on, by the names of calibrations."""
        return {
            "gen_length": self.gen_length,
            "block_length": self.block_length,
            "cache": str(self.cache) if self.cache else NONE,
        }

    def shares_first(self, device: Accelerator | None = None) -> bool:
        """Whether rows of a prompt share its first forward; by default on the devices here."""
        is_tpu = accelerators.platform() == "tpu" if device is None else bool(device.topologies)
        is_short = self.gen_length <= _SHARED_LENGTH or not is_tpu
        return self.prompt_rows > 1 and is_short and self.cache is None

    @property
    def shares_prompts(self) -> bool:
        """Whether rows of a prompt share its keys and values."""
        return self.prompt_rows > 1 and self.cache is not None and self.cache.kind == "block"

    def num_slots(self, rows: int, prompt_length: int) -> int:
        """Slots of a rollout of so many rows; a `ValueError` if they do not fit the groups."""
        if rows % self.slot_groups:
            raise ValueError(
                f"{rows} rows do not divide among slot_groups={self.slot_groups}; give a multiple "
                "of it"
            )
        if self.slots:
            return min(self.slots, rows)
        if accelerators.platform() == "cpu":
            return rows
        return self.slot_groups * self.slots_of_group(rows // self.slot_groups, prompt_length)

    def slots_of_group(
        self, rows: int, prompt_length: int, device: Accelerator | None = None
    ) -> int:
        """Slots of a device's rows where `slots` is 0; by default of the devices that are here.

        As few as keep forwards useful, but as many as make products last as long as the reading of
        the weights.
        """
        device = accelerators.here() if device is None else device
        wanted = _FORWARD_TOKENS if device is None else device.balance
        tokens = prompt_length + self.gen_length
        if self.cache is not None:
            tokens = self.cache.window(self.gen_length, self.block_length)
        return min(max(-(-rows // _ROWS_PER_SLOT), math.ceil(wanted / tokens)), rows)


@struct.dataclass
class Records:
    """Every step of a rollout, time-major.

    T is the most steps that a row can take: gen_length; with a block-causal denoiser one block
    more, because a canvas may begin and end within a block; and what a policy that edits asks for.

    Attributes:
        obs: observations, each leaf [T, B, ...].
        action: actions, each leaf [T, B, ...].
        active: the row still had a position to fill at this step; steps that are not active hold
            zeros and count for nothing.
    """

    obs: Observation
    action: Action
    active: Bool[Array, "T B"]


def never_filled(
    tokens: Int[np.ndarray, "B L"], mask_id: int, stop_ids: tuple[int, ...] = ()
) -> Bool[np.ndarray, "B L"]:
    """Positions of final canvases that a rollout should have filled and did not.

    Masks after the first of the settings' `stop_ids` do not count.
    """
    stops = np.isin(tokens, stop_ids)
    return (tokens == mask_id) & (np.cumsum(stops, axis=1) == 0)


@struct.dataclass
class Forwards:
    """Forwards of a rollout with a cache.

    Attributes:
        full: forwards over the whole sequence (with cache "block": over its prompt; a shared one
            counts for one of its rows) that a row needed.
        cached: forwards over a few positions that each row needed.
        full_executed, cached_executed: forwards of both kinds that were executed, the latter of all
            slots each.
        full_rows: rows per forward over whole sequences.
        full_tokens, cached_tokens: positions of such forwards, per row.
        length: positions of a whole sequence, prompt and canvas.
    """

    full: Int[Array, " B"]
    cached: Int[Array, " B"]
    full_executed: Int[Array, ""]
    cached_executed: Int[Array, ""]
    full_rows: int = struct.field(pytree_node=False)
    full_tokens: int = struct.field(pytree_node=False)
    cached_tokens: int = struct.field(pytree_node=False)
    length: int = struct.field(pytree_node=False)


@struct.dataclass
class Trajectory:
    """The result of one rollout of B rows.

    Attributes:
        prompts: the prompts it started from.
        tokens: final canvas; holds the mask token where a policy never filled a position.
        step_map: index of the row's own step that filled each position (or last edited it), -1 if
            none did.
        confidence: probability of the token when it was written, 0 where nothing was.
        nfe: denoiser forwards in which the row could fill or edit positions: its steps.
        forwards: forwards that were executed (a scalar), each of all slots (but see
            `Forwards.full_rows`); a shared one counts for each of its rows.
        slots: rows per forward.
        records: per-step records, or None.
        by_kind: with a cache, the forwards by kind; None without.
    """

    prompts: Prompts
    tokens: Int[Array, "B L"]
    step_map: Int[Array, "B L"]
    confidence: Float[Array, "B L"]
    nfe: Int[Array, " B"]
    forwards: Int[Array, ""]
    slots: int = struct.field(pytree_node=False)
    records: Records | None = None
    by_kind: Forwards | None = None

    def __repr__(self) -> str:
        parts = {"prompts": getattr(self.prompts, "tokens", None), "tokens": self.tokens}
        shapes = [f"{name}={getattr(part, 'shape', None)}" for name, part in parts.items()]
        more = f"slots={self.slots}, records={self.records is not None}"
        return f"Trajectory({', '.join(shapes)}, {more})"

    def row(self, number: int) -> "Trajectory":
        """One row as a trajectory of its own; what was executed is that of all."""
        one = slice(number, number + 1)
        rows = jax.tree.map(
            lambda leaf: leaf[one] if leaf.ndim else leaf, dataclasses.replace(self, records=None)
        )
        records = jax.tree.map(lambda leaf: leaf[:, one], self.records)
        return dataclasses.replace(rows, records=records)

    @property
    def cost(self) -> Float[Array, " B"]:
        """Cost of each row's forwards, in forwards over its whole sequence.

        That is `nfe` without a cache. With one, a forward counts for the share of the sequence's
        positions that it computes.
        """
        kinds = self.by_kind
        if kinds is None:
            return self.nfe.astype(jnp.float32)
        tokens = kinds.full * kinds.full_tokens + kinds.cached * kinds.cached_tokens
        return tokens / kinds.length

    @property
    def executed_cost(self) -> Float[Array, ""]:
        """Cost of all executed forwards, in that unit; more than the rows' if slots were idle."""
        kinds = self.by_kind
        if kinds is None:
            return self.slots * self.forwards.astype(jnp.float32)
        full = kinds.full_executed * kinds.full_rows * kinds.full_tokens
        cached = kinds.cached_executed * self.slots * kinds.cached_tokens
        return (full + cached) / kinds.length

    @property
    def useful_forward_fraction(self) -> Float[Array, ""]:
        """Fraction of the executed row forwards that a row still needed, by cost."""
        if self.by_kind is None:
            return jnp.sum(self.nfe) / (self.slots * self.forwards)
        return jnp.sum(self.cost) / self.executed_cost


def check_finite(
    confidence: Float[Array | np.ndarray, "B L"], step_map: Int[Array | np.ndarray, "B L"]
) -> None:
    """Raises FloatingPointError, with the place, where the denoiser's scores were not finite."""
    bad = np.argwhere(~np.isfinite(np.asarray(confidence)))
    if len(bad):
        row, position = bad[0].tolist()
        raise FloatingPointError(
            f"the denoiser's scores are not finite at {len(bad)} positions of canvases, first in "
            f"row {row} at position {position}, filled at step {int(step_map[row, position])}: its "
            "activations overflow, or its weights are damaged. Compute in float32 or bfloat16 "
            "(dtype), or load the weights again"
        )


def joined(parts: Sequence[Trajectory], feeds: int = 1) -> Trajectory:
    """Rollouts of one shape as if they were one: their rows one after the other.

    Where `feeds` processes gave rows to each, all rows of a process, from all rollouts, come before
    those of the next.
    """
    if len(parts) == 1:
        return parts[0]

    def join(*leaves: Array, axis: int = 0) -> Array:
        if feeds == 1:
            return jnp.concatenate(leaves, axis=axis)
        before, rest = leaves[0].shape[:axis], leaves[0].shape[axis + 1 :]
        split = [leaf.reshape(*before, feeds, -1, *rest) for leaf in leaves]
        return jnp.concatenate(split, axis=axis + 1).reshape(*before, -1, *rest)

    records, kinds = [part.records for part in parts], [part.by_kind for part in parts]
    by_row = jax.tree.map(
        join,
        *(
            dataclasses.replace(part, records=None, by_kind=None, forwards=None)  # type: ignore[arg-type]
            for part in parts
        ),
    )
    one = kinds[0]
    if one is not None:
        rows = {name: join(*(getattr(each, name) for each in kinds)) for name in ("full", "cached")}
        executed = {
            name: sum(getattr(each, name) for each in kinds)
            for name in ("full_executed", "cached_executed")
        }
        one = dataclasses.replace(one, **rows, **executed)  # type: ignore[arg-type]
    joined_records = None
    if records[0] is not None:
        joined_records = jax.tree.map(functools.partial(join, axis=1), *records)
    forwards = jnp.asarray(sum(part.forwards for part in parts))
    return dataclasses.replace(by_row, records=joined_records, by_kind=one, forwards=forwards)
