"""One compiled program per rollout: denoiser, policy and canvas in a single `lax.while_loop`.

Everything that fills a canvas in this package goes through `rollout`: training, evaluation and
generation; heuristics and learned policies. The MDP is that of Jazbec et al. (arXiv 2512.09106,
section 3): the state is the canvas, an action is a set of positions to fill, the frozen denoiser
is the environment.

Rows are independent. Each row has its own block index, step count and random stream, so what a row
gets depends neither on the rows beside it nor on when they finish, and not on the slot that it sits
in either (see `slots`).

The loop is a `while_loop` and not a scan: how many iterations it takes to serve all rows depends on
what the policy does, a scan over the most there can be would have to skip the rest one by one, and
nothing is differentiated through a rollout.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Int

from jax_unmask.denoisers.head import score_candidates
from jax_unmask.denoisers.transformer import Denoiser, Params
from jax_unmask.policies.base import Observation, Policy, select_settings
from jax_unmask.rollout.slots import Slots
from jax_unmask.rollout.trajectory import Prompts, Records, RolloutSettings, Trajectory

Watcher = Callable[[np.ndarray, np.ndarray], None]
"""Gets canvases [B, L] and step maps [B, L] after each iteration, while the rollout runs."""


class _Rows(NamedTuple):
    """Where rows stand; L canvas positions."""

    canvas: Int[Array, "B L"]
    step_map: Int[Array, "B L"]
    confidence: Array
    step: Int[Array, " B"]
    block: Int[Array, " B"]
    step_in_block: Int[Array, " B"]
    post_steps: Int[Array, " B"]


class _Held(NamedTuple):
    """Everything of the rows that sit in the slots: where they stand, and what they were given."""

    rows: _Rows
    prompts: Prompts
    keys: Array


class _State(NamedTuple):
    """What one iteration hands to the next.

    `records` holds what happened in each slot at each iteration so far: leaves [I, S, ...].
    """

    rows: _Rows
    slots: Slots
    forwards: Int[Array, ""]
    records: Records | None


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

    A row's block ends when it holds no mask any more or after `block_length` steps in it; masks
    that a policy left behind stay. A policy that edits gets further steps on a full block, as many
    as it needs (`Needs.post_steps`). The loop ends once every row is done.

    Args:
        denoiser: the dLLM (static).
        denoiser_params: its parameters.
        policy: chooses the positions to fill (static).
        policy_params: its parameters and numeric settings.
        prompts: left-padded prompts.
        keys: typed PRNG keys [B], see `row_keys`.
        settings: static shape of the rollout.
        watch: called on the host after each iteration, in order (static; each one compiles its own
            program, which no compilation cache on disk can keep). The device waits for it.

    Returns:
        The trajectory; `records` only if `settings.record`.

    Raises:
        ValueError: the rows do not divide among `settings.slot_groups`.
    """
    batch = prompts.tokens.shape[0]
    length, block_length = settings.gen_length, settings.block_length
    denoiser = _with_blocks(denoiser, block_length)
    is_block_causal = denoiser.config.attention_block is not None
    # Blocks that are counted from the start of the text may be cut at both ends of the canvas.
    num_blocks = length // block_length + is_block_causal
    mask_id = denoiser.config.mask_token_id
    most_post_steps = policy.needs.post_steps or 0
    most_steps = length + num_blocks * most_post_steps

    def blocks(held: _Held) -> tuple[Int[Array, " S"], Int[Array, "S L"]]:
        """What the prompt has taken of a row's first block, and the block of each position."""
        before = jnp.zeros(held.rows.block.shape, jnp.int32)
        if is_block_causal:
            before = held.prompts.mask.sum(axis=-1, dtype=jnp.int32) % block_length
        return before, (before[:, None] + jnp.arange(length)) // block_length

    def last_hidden(tokens: Int[Array, "S P"], held: _Held) -> Array:
        tokens = jnp.concatenate([tokens, held.rows.canvas], axis=1)
        canvas_mask = jnp.ones(held.rows.canvas.shape, dtype=bool)
        attention_mask = jnp.concatenate([held.prompts.mask, canvas_mask], axis=1)
        variables = {"params": denoiser_params}
        hidden = denoiser.apply(variables, tokens, attention_mask, last=length, method="hidden")
        return cast(Array, hidden)

    def observe(held: _Held, step_keys: Array) -> tuple[Observation, Bool[Array, "S L"]]:
        rows = held.rows
        hidden = last_hidden(held.prompts.tokens, held)
        if settings.guidance > 0:
            # The head is linear, so logits are guided by guiding what goes into it.
            nothing = last_hidden(jnp.full_like(held.prompts.tokens, mask_id), held)
            hidden = nothing + (settings.guidance + 1.0) * (hidden - nothing)
        scores = score_candidates(
            denoiser,
            denoiser_params,
            hidden,
            step_keys,
            top_k=policy.needs.top_k,
            entropy=policy.needs.entropy,
            temperature=settings.temperature,
            vocab_chunk=settings.vocab_chunk,
            sampling=settings.sampling,
        )
        before, block_of = blocks(held)
        in_block = block_of == rows.block[:, None]
        masked = rows.canvas == mask_id
        obs = Observation(
            candidate=scores.candidate,
            confidence=scores.confidence,
            top_probs=scores.top_probs,
            masked=masked,
            legal=masked & in_block,
            step=rows.step,
            step_in_block=rows.step_in_block,
            block_start=jnp.maximum(rows.block * block_length - before, 0),
            entropy=scores.entropy,
            hidden=hidden.astype(jnp.float32) if policy.needs.hidden else None,
            block_length=block_length,
        )
        return obs, in_block

    def advance(held: _Held, params: Params) -> tuple[_Rows, Records]:
        rows = held.rows
        step_keys = jax.vmap(jax.random.fold_in)(held.keys, rows.step)
        step_keys = jax.vmap(functools.partial(jax.random.split, num=2))(step_keys)
        obs, in_block = observe(held, step_keys[:, 0])
        action = policy(params, obs, step_keys[:, 1])

        has_masks = obs.legal.any(axis=-1)
        active = rows.block < num_blocks if most_post_steps else has_masks
        fill = action.fill & obs.legal
        changes = jnp.zeros_like(has_masks)
        if action.edit is not None:
            edit = action.edit & in_block & ~obs.masked & (obs.candidate != rows.canvas)
            fill, changes = fill | edit, edit.any(axis=-1)
        canvas = jnp.where(fill, obs.candidate, rows.canvas)
        used = rows.step_in_block + active
        post_steps = rows.post_steps + (active & ~has_masks)
        unfinished = ((canvas == mask_id) & in_block).any(axis=-1)
        edits_on = (post_steps < most_post_steps) & (has_masks | changes)
        next_block = active & jnp.where(unfinished, used >= block_length, ~edits_on)
        is_last = rows.block == blocks(held)[1][:, -1]
        if settings.stop_ids:
            stops = jnp.isin(canvas, jnp.asarray(settings.stop_ids, jnp.int32))
            is_last |= stops.any(axis=-1)
        new = _Rows(
            canvas=canvas,
            step_map=jnp.where(fill, rows.step[:, None], rows.step_map),
            confidence=jnp.where(fill, obs.confidence, rows.confidence),
            step=rows.step + active,
            block=jnp.where(next_block & is_last, num_blocks, rows.block + next_block),
            step_in_block=jnp.where(next_block, 0, used),
            post_steps=jnp.where(next_block, 0, post_steps),
        )
        return new, Records(obs, action, active)

    def serve(state: _State) -> tuple[_Rows, Records]:
        """One step of the rows that sit in the slots."""
        slots = state.slots
        held = _Held(*slots.take((state.rows, prompts, keys)))
        own = policy_params
        if not slots.is_static:
            own = select_settings(policy_params, slots.take, batch)
        return advance(held, own)

    def iterate(state: _State) -> _State:
        rows, happened = serve(state)
        forwards = state.forwards + 1
        all_rows = state.slots.put(state.rows, rows)
        if watch is not None:
            io_callback(watch, None, all_rows.canvas, all_rows.step_map, ordered=True)
        return _State(
            rows=all_rows,
            slots=state.slots.refill(rows.block >= num_blocks, forwards),
            forwards=forwards,
            records=None if state.records is None else _write(state, happened),
        )

    state = _State(
        rows=_first_rows(batch, length, mask_id, num_blocks, prompts.present),
        slots=Slots.first(batch, settings.num_slots(batch), settings.slot_groups),
        forwards=jnp.zeros((), jnp.int32),
        records=None,
    )
    if settings.record:
        # The most iterations that there can be: every round of rows takes all steps.
        most = most_steps * -(-batch // settings.num_slots(batch))
        shapes = jax.eval_shape(serve, state)[1]
        state = state._replace(
            records=jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        )
    state = jax.lax.while_loop(lambda s: (s.rows.block < num_blocks).any(), iterate, state)
    rows = state.rows
    return Trajectory(
        prompts=prompts,
        tokens=rows.canvas,
        step_map=rows.step_map,
        confidence=rows.confidence,
        nfe=rows.step,
        forwards=state.forwards,
        slots=settings.num_slots(batch),
        records=state.slots.by_row(state.records, rows.step, most_steps),
    )


def _with_blocks(denoiser: Denoiser, block_length: int) -> Denoiser:
    """The denoiser; if it is block-causal, with the attention blocks of the rollout."""
    if denoiser.config.attention_block is None:
        return denoiser
    return denoiser.clone(config=dataclasses.replace(denoiser.config, attention_block=block_length))


def _write(state: _State, happened: Records) -> Records:
    """Records with those of this iteration; zeros where a slot was idle."""
    active = happened.active

    def write(buffer: Array, new: Array) -> Array:
        new = jnp.where(active.reshape(-1, *(1 for _ in new.shape[1:])), new, jnp.zeros_like(new))
        return jax.lax.dynamic_update_index_in_dim(buffer, new, state.forwards, axis=0)

    return jax.tree.map(write, state.records, happened)


def _first_rows(
    batch: int, length: int, mask_id: int, num_blocks: int, present: Bool[Array, " B"] | None
) -> _Rows:
    """All-mask canvases; every counter at zero. Absent rows are done already."""
    count = jnp.zeros(batch, jnp.int32)
    return _Rows(
        canvas=jnp.full((batch, length), mask_id, jnp.int32),
        step_map=jnp.full((batch, length), -1, jnp.int32),
        confidence=jnp.zeros((batch, length), jnp.float32),
        step=count,
        block=count if present is None else jnp.where(present, 0, num_blocks).astype(jnp.int32),
        step_in_block=count,
        post_steps=count,
    )
