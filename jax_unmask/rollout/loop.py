"""One compiled program per rollout: denoiser, policy and canvas in one scan over forwards.

Everything that fills a canvas of masks goes through `rollout`: training, evaluation and generation;
heuristics and learned policies; with and without a cache. It stands at the end of this file, after
what it is made of: the MDP (what a policy observes, what its action does to a canvas: `Mdp.act`)
and the iterations (`Loop.serve`). The denoiser's forwards are in `forwards` and
`cached_forwards`.

Jazbec et al. (arXiv 2512.09106, section 3): the state is the canvas, an action is a set of
positions to fill, the frozen denoiser is the environment. Rows are independent. Each row has its
own block, step count and random stream, so its result depends neither on the other rows nor on when
they finish, nor on its slot (see `slots`).
"""

import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.cache import KeyValueCache, Written, write_positions
from jax_unmask.denoisers.head import Scores
from jax_unmask.denoisers.positions import window_of
from jax_unmask.denoisers.transformer import Denoiser, Params
from jax_unmask.policies.base import Filled, Observation, Policy, select_settings
from jax_unmask.rollout.cached_forwards import CachedForwards
from jax_unmask.rollout.forwards import Carry, LoopState, PlainForwards, SharedForwards
from jax_unmask.rollout.rows import Blocks, Rows, RunningBatch
from jax_unmask.rollout.slots import Slots, SlotStep
from jax_unmask.rollout.trajectory import Prompts, Records, RolloutSettings, Trajectory, Watcher
from jax_unmask.runtime.mesh import by_rows


@dataclasses.dataclass(frozen=True)
class Mdp:
    """The steps of a rollout, but for the denoiser's forward.

    Attributes:
        policy: chooses the positions to fill.
        blocks: the blocks of the canvases.
        scored: canvas positions that a forward without a cache scores, see `scored_positions`.
        mask_id: the mask token.
    """

    policy: Policy
    blocks: Blocks
    scored: int
    mask_id: int

    @property
    def most_steps(self) -> int:
        """T, the most steps that a row can take."""
        each = self.blocks.settings.block_length + self.most_post_steps
        return self.blocks.number * each

    @property
    def most_post_steps(self) -> int:
        """Steps on a block without masks at most: 0 where tokens are final."""
        return self.policy.needs.post_steps or 0

    def first_rows(self, batch: int, present: Bool[Array, " B"] | None) -> Rows:
        """All-mask canvases; every counter at zero. Absent rows are done already."""
        count, length = jnp.zeros(batch, jnp.int32), self.blocks.settings.gen_length
        first = count
        if present is not None:
            first = jnp.where(present, 0, self.blocks.number).astype(jnp.int32)
        rows = Rows(
            canvas=jnp.full((batch, length), self.mask_id, jnp.int32),
            step_map=jnp.full((batch, length), -1, jnp.int32),
            confidence=jnp.zeros((batch, length), jnp.float32),
            step=count,
            block=first,
            step_in_block=count,
            post_steps=count,
        )
        return by_rows(rows)

    def observation(
        self, batch: RunningBatch, scores: Scores, hidden: Float[Array, "S W D"] | None
    ) -> Observation:
        """The observation of the policy before a step.

        Args:
            batch: the rows.
            scores: of the whole canvas.
            hidden: states of the whole canvas, or of the current block, or None.
        """
        rows, blocks = batch.rows, self.blocks
        in_block = blocks.of_positions(batch) == rows.block[:, None]
        masked = rows.canvas == self.mask_id
        start = blocks.start(batch)
        if hidden is not None and hidden.shape[1] != self.scored:
            hidden = window_of(hidden, self.scored, blocks.window_start(batch, self.scored))
        filled = None
        if self.policy.needs.filled:
            filled = Filled(
                token=rows.canvas,
                probability=jnp.where(masked, 0.0, cast(Array, scores.of_tokens)),
                age=jnp.where(masked, 0, rows.step[:, None] - rows.step_map),
                legal=in_block & ~masked,
            )
        return Observation(
            candidate=scores.candidate,
            confidence=scores.confidence,
            top_probs=scores.top_probs,
            masked=masked,
            legal=masked & in_block,
            step=rows.step,
            step_in_block=rows.step_in_block,
            block_start=start,
            entropy=scores.entropy,
            hidden=hidden,
            filled=filled,
            block_length=blocks.settings.block_length,
        )

    def act(
        self,
        batch: RunningBatch,
        params: Params,
        obs: Observation,
        keys: Array,
        acting: Bool[Array, " S"] | None = None,
    ) -> tuple[Rows, Records]:
        """One step of rows: the policy's choice and what becomes of it.

        Rows that are done stay as they are, and so do those that do not act (None: all do).
        """
        rows, blocks, settings = batch.rows, self.blocks, self.blocks.settings
        if acting is not None:
            obs = dataclasses.replace(obs, legal=obs.legal & acting[:, None])
        action = self.policy(params, obs, keys)
        in_block = blocks.of_positions(batch) == rows.block[:, None]

        has_masks = obs.legal.any(axis=-1)
        active = has_masks
        if self.most_post_steps:
            active = rows.block < blocks.number
            active = active if acting is None else active & acting
        fill = action.fill & obs.legal
        changes = jnp.zeros_like(has_masks)
        if action.edit is not None:
            edit = action.edit & in_block & ~obs.masked & (obs.candidate != rows.canvas)
            edit &= active[:, None]
            fill, changes = fill | edit, edit.any(axis=-1)
        canvas = jnp.where(fill, obs.candidate, rows.canvas)
        used = rows.step_in_block + active
        step_map = jnp.where(fill, rows.step[:, None], rows.step_map)
        confidence = jnp.where(fill, obs.confidence, rows.confidence)
        if action.take_back is not None:
            back = action.take_back & in_block & ~obs.masked & active[:, None]
            masks = back | ((canvas == self.mask_id) & in_block)
            back &= (masks.sum(axis=-1) <= settings.block_length - used)[:, None]
            canvas = jnp.where(back, self.mask_id, canvas)
            step_map, confidence = jnp.where(back, -1, step_map), jnp.where(back, 0.0, confidence)
        post_steps = rows.post_steps + (active & ~has_masks)
        unfinished = ((canvas == self.mask_id) & in_block).any(axis=-1)
        edits_on = (post_steps < self.most_post_steps) & (has_masks | changes)
        is_used_up = used >= settings.block_length
        next_block = active & jnp.where(unfinished, is_used_up, ~edits_on)
        is_last = rows.block == blocks.of_positions(batch)[:, -1]
        if settings.stop_ids:
            stops = jnp.isin(canvas, jnp.asarray(settings.stop_ids, jnp.int32))
            is_last |= stops.any(axis=-1)
        new = Rows(
            canvas=canvas,
            step_map=step_map,
            confidence=confidence,
            step=rows.step + active,
            block=jnp.where(next_block & is_last, blocks.number, rows.block + next_block),
            step_in_block=jnp.where(next_block, 0, used),
            post_steps=jnp.where(next_block, 0, post_steps),
        )
        return new, Records(obs, action, active)


_STEPS_PER_CHUNK = 8
"""Iterations that are scanned at a time. Those after the last row is done are skipped."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """The iterations of a rollout: forwards, what the policy does with them, slots.

    Attributes:
        mdp: the steps of rows.
        policy_params: parameters and settings of the policy.
        forwards: the denoiser's forwards, with the prompts and keys of all rows.
        watch: see `rollout`.
    """

    mdp: Mdp
    policy_params: Params
    forwards: PlainForwards
    watch: Watcher | None = None

    @classmethod
    def of(
        cls,
        denoiser: Denoiser,
        denoiser_params: Params,
        policy: Policy,
        policy_params: Params,
        prompts: Prompts,
        keys: Array,
        settings: RolloutSettings,
        watch: Watcher | None = None,
    ) -> "Loop":
        """The loop of a rollout; arguments as of `rollout`."""
        kinds = PlainForwards if settings.cache is None else CachedForwards
        forwards = kinds(denoiser, denoiser_params, policy, settings, prompts, keys)
        mdp = Mdp(policy, forwards.blocks, forwards.scored, denoiser.config.mask_token_id)
        return cls(mdp, policy_params, forwards, watch)

    def first(
        self, slots: Slots, present: Bool[Array, " B"] | None
    ) -> tuple[LoopState, KeyValueCache | None]:
        """The state before the first forward, and the cache; absent rows are done."""
        state = LoopState(
            rows=self.mdp.first_rows(self.forwards.rows, present),
            slots=slots,
            memory=self.forwards.first_memory(slots),
            executed=jnp.zeros(self.forwards.kinds, jnp.int32),
        )
        return state, self.forwards.first_cache(slots)

    def is_done(self, rows: Rows) -> Bool[Array, " B"]:
        """Whether a row gets no further forward."""
        return rows.block >= self.mdp.blocks.number

    def is_unfinished(self, state: LoopState) -> Bool[Array, ""]:
        """Whether any row is not done."""
        return (state.rows.block < self.mdp.blocks.number).any()

    def serve(
        self, kind: int, state: LoopState, cache: KeyValueCache | None
    ) -> tuple[LoopState, KeyValueCache | Written | None, SlotStep | None]:
        """One forward, what it does to the cache, and the step that the rows take with it."""
        mdp = self.mdp
        # 1. The denoiser: what the policy may read of the canvases in the slots.
        done = self.forwards.run(kind, state, cache)
        slots, served = state.slots, done.served.of(state.slots)
        # 2. The policy: which positions to fill, and the canvases after it.
        params = select_settings(self.policy_params, served.take)
        obs = mdp.observation(done.batch, done.readout.scores, done.readout.hidden)
        rows, records = mdp.act(done.batch, params, obs, done.policy_keys, done.acting)
        # 3. The new state; slots of rows that are done go to waiting rows.
        all_rows = by_rows(served.put(state.rows, rows))
        if self.watch is not None:
            io_callback(self.watch, None, all_rows.canvas, all_rows.step_map, ordered=True)
        step = SlotStep(
            records=done.served.spread(records, slots.row.size),
            row=slots.row,
            step=slots.take(state.rows.step),
        )
        state = LoopState(
            rows=all_rows,
            slots=slots.refill(self.is_done(all_rows)),
            memory=done.memory,
            executed=state.executed.at[kind].add(1),
        )
        return state, done.cache, step if self.forwards.settings.record else None

    def share_first(
        self, state: LoopState, records: Records | None
    ) -> tuple[LoopState, Records | None]:
        """The first step of all rows, before they get slots: a forward serves all of a prompt."""
        slots, forwards = state.slots, self.forwards
        groups, each = slots.row.shape
        # As many prompts at one time as there are slots; where each row draws tokens of its own, as
        # have slots for all of their rows, because of the head.
        same, prompts = forwards.settings.prompt_rows, slots.size // forwards.settings.prompt_rows
        most = max(each // same if forwards.settings.temperature > 0 else each, 1)
        together = next(n for n in range(most, 0, -1) if prompts % n == 0)
        rows = together * same
        loop = dataclasses.replace(self, forwards=SharedForwards(*forwards.arguments))

        def slots_of(row: Array) -> Slots:
            return dataclasses.replace(slots, row=jnp.tile(row, (groups, 1)))

        def serve(state: LoopState, row: Array) -> tuple[LoopState, SlotStep | None]:
            state, _, step = loop.serve(0, state._replace(slots=slots_of(row)), None)
            return state._replace(slots=slots), step

        turns = jnp.arange(slots.size, dtype=jnp.int32).reshape(-1, rows)
        state, steps = jax.lax.scan(serve, state, turns)
        if records is not None:
            assert steps is not None
            records = slots_of(turns[0]).record(records, steps)
        executed = jnp.full(1, -(-slots.size // each), jnp.int32)
        slots = slots.refill(self.is_done(state.rows))
        return state._replace(slots=slots, executed=executed), records

    def shapes(self, state: LoopState, cache: KeyValueCache | None) -> Any:
        """Shapes of what an iteration of the last kind writes: to the cache, to the records."""
        last_kind = self.forwards.kinds - 1
        _, *shapes = jax.eval_shape(functools.partial(self.serve, last_kind), state, cache)
        return shapes

    def chunk(self, carry: Carry, shapes: Any, steps: int) -> Carry:
        """Full forwards while they are due, then several iterations of the last kind."""
        last_kind = self.forwards.kinds - 1

        def record(state: LoopState, records: Records | None, steps: Any) -> Records | None:
            return None if records is None else state.slots.record(records, steps)

        def fill_cache(carry: Carry) -> Carry:
            """A full forward, which fills the cache of some rows."""
            state, cache, records = carry
            state, filled, step = self.serve(0, state, cache)
            steps = jax.tree.map(lambda x: x[None], step)
            return state, cast(KeyValueCache, filled), record(state, records, steps)

        def iterate(
            carry: tuple[LoopState, KeyValueCache | None], _: None
        ) -> tuple[tuple[LoopState, KeyValueCache | None], SlotStep | None]:
            """A forward of the last kind; nothing if it is not due.

            The cache passes the branches by: results of a branch are copied on a GPU.
            """
            state, cache = carry
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            state, written, step = jax.lax.cond(
                self.forwards.due(state)[last_kind],
                lambda state: self.serve(last_kind, state, cache),
                lambda state: (state, *nothing),
                state,
            )
            if written is not None:
                cache = write_positions(cast(KeyValueCache, cache), written)
            return (state, cache), step

        forwards = self.forwards
        if isinstance(forwards, CachedForwards):
            share = forwards.share_prompts
            carry = jax.lax.while_loop(
                lambda carry: forwards.due(carry[0])[0],
                lambda carry: share(fill_cache(carry)),
                share(carry),
            )
        state, cache, records = carry
        (state, cache), taken = jax.lax.scan(iterate, (state, cache), length=steps)
        return state, cache, record(state, records, taken)


def row_keys(key: Array, rows: Int[Array, " B"] | int) -> Array:
    """One typed PRNG key per row: `fold_in(key, row)`.

    Args:
        key: a typed PRNG key.
        rows: identities of the rows, or their number (then 0 .. rows - 1). A row with the same
            identity draws the same numbers in any batch.

    Returns:
        Typed keys [B].
    """
    identities = jnp.arange(rows) if isinstance(rows, int) else rows
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(identities)


@functools.partial(jax.jit, static_argnames=("denoiser", "policy", "settings", "watch"))
def rollout(
    denoiser: Denoiser,
    denoiser_params: Params,
    policy: Policy,
    policy_params: Params,
    prompts: Prompts,
    keys: Array,
    settings: RolloutSettings,
    watch: Watcher | None = None,
) -> Trajectory:
    """Fills the canvas of every row, from all masks to the end.

    A row's block ends when it has no mask any more or after `block_length` steps in it; masks that
    a policy has not filled by then stay. A policy that edits gets further steps on a full block, as
    many as it needs (`Needs.post_steps`). The loop ends once every row is done.

    Args:
        denoiser: the dLLM (static).
        denoiser_params: its parameters.
        policy: chooses the positions to fill (static).
        policy_params: its parameters and numeric settings; one with a value per row is a
            `policies.PerRow`.
        prompts: left-padded prompts.
        keys: typed PRNG keys [B], see `row_keys`.
        settings: static shape of the rollout.
        watch: called on the host after each iteration, in order (static; each one compiles its own
            program, which no compilation cache on disk can keep). The device waits for it.

    Returns:
        The trajectory; `records` only if `settings.record`.

    Raises:
        ValueError: the rows do not divide among `settings.slot_groups`; the cache is not one for
            the denoiser's kind of attention; or targets are given, or tokens may be taken back,
            and the settings do not fit that.
    """
    sampling = settings.sampling
    filters = sampling.filtered_confidence and sampling.changes(settings.temperature)
    if policy.needs.filled and filters:
        raise ValueError(
            "a policy that takes tokens back reads the denoiser's own probabilities, not those of "
            f"a filtered draw; leave out top_k and top_p, and set temperature=0, not {sampling}"
        )
    if prompts.targets is not None and (settings.cache or settings.temperature > 0):
        raise ValueError(
            f"prompts with targets are rolled out with temperature=0 and cache=None, not "
            f"{settings.temperature} and {settings.cache!r}"
        )
    batch = prompts.tokens.shape[0]
    loop = Loop.of(denoiser, denoiser_params, policy, policy_params, prompts, keys, settings, watch)
    slots, mdp = settings.num_slots(*prompts.tokens.shape), loop.mdp
    assignment = Slots.first(batch, slots, settings.slot_groups)
    state, cache = loop.first(assignment, prompts.present)
    shapes = loop.shapes(state, cache)
    room = (mdp.most_steps, batch)

    def empty(x: jax.ShapeDtypeStruct) -> Array:
        # The carry of a loop keeps its layout if the dimensions after the row's are one.
        return jnp.zeros((*room, math.prod(x.shape[1:])) if x.ndim > 1 else room, x.dtype)

    records = None
    if settings.record:
        records = by_rows(jax.tree.map(empty, shapes[1].records), axis=1)
    if settings.shares_first() and assignment.size % settings.prompt_rows == 0:
        state, records = loop.share_first(state, records)
    state, _, records = jax.lax.while_loop(
        lambda carry: loop.is_unfinished(carry[0]),
        lambda carry: loop.chunk(carry, shapes, _STEPS_PER_CHUNK),
        (state, cache, records),
    )
    if records is not None:
        records = jax.tree.map(
            lambda x, one: x.reshape(*room, *one.shape[1:]), records, shapes[1].records
        )
    rows = state.rows
    return Trajectory(
        prompts=prompts,
        tokens=rows.canvas,
        step_map=rows.step_map,
        confidence=rows.confidence,
        nfe=rows.step,
        forwards=state.executed.sum(),
        slots=slots,
        records=None if records is None else by_rows(records, axis=1),
        by_kind=loop.forwards.by_kind(state),
    )
