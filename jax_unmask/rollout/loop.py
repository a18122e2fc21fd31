"""One compiled program per rollout: denoiser, policy and canvas in one scan over forwards.

Everything that fills a canvas of masks goes through `rollout`: training, evaluation and generation;
heuristics and learned policies; with and without a cache. To follow a token from prompt to
trajectory, read `rollout` here, then `mdp.Mdp.act` (what a step does to a canvas) and `forwards`
(what a forward computes).

Rows are independent. Each row has its own block, step count and random stream, so its result
depends neither on the other rows nor on when they finish, nor on its slot (see `slots`).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jaxtyping import Array, Int

from jax_unmask.denoisers.transformer import Denoiser, Params
from jax_unmask.policies.base import Policy, select_settings
from jax_unmask.rollout.forwards import CachedForwards, LoopState, PlainForwards
from jax_unmask.rollout.mdp import Mdp, for_rollouts
from jax_unmask.rollout.slots import Slots, SlotStep
from jax_unmask.rollout.trajectory import (
    Prompts,
    Records,
    RolloutSettings,
    Trajectory,
    Watcher,
)
from jax_unmask.runtime.mesh import by_rows

_STEPS_PER_CHUNK = 8
"""Iterations that are scanned at a time. Those after the last row is done are skipped."""


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
            the denoiser's kind of attention; or targets are given and the settings do not fit them.
    """
    if prompts.targets is not None and (settings.cache or settings.temperature > 0):
        raise ValueError(
            f"prompts with targets are rolled out with temperature=0 and cache=None, not "
            f"{settings.temperature} and {settings.cache!r}"
        )
    batch = prompts.tokens.shape[0]
    mdp = Mdp(for_rollouts(denoiser, settings.block_length), denoiser_params, policy, settings)
    kinds = PlainForwards if settings.cache is None else CachedForwards
    forwards = kinds(mdp, prompts, keys)

    def serve(kind: int, state: LoopState) -> tuple[LoopState, SlotStep | None]:
        """One forward, and the step that the rows take with it."""
        # 1. The denoiser: what the policy may read of the canvases in the slots.
        done = forwards.run(kind, state)
        slots, served = state.slots, done.served.of(state.slots)
        # 2. The policy: which positions to fill, and the canvases after it.
        params = select_settings(policy_params, served.take)
        obs = mdp.observation(done.batch, done.readout.scores, done.readout.hidden)
        rows, records = mdp.act(done.batch, params, obs, done.policy_keys, done.acting)
        # 3. The new state; slots of rows that are done go to waiting rows.
        all_rows = by_rows(served.put(state.rows, rows))
        if watch is not None:
            io_callback(watch, None, all_rows.canvas, all_rows.step_map, ordered=True)
        step = SlotStep(
            records=done.served.spread(records, slots.row.size),
            row=slots.row,
            step=slots.take(state.rows.step),
        )
        state = LoopState(
            rows=all_rows,
            slots=slots.refill(slots.take(all_rows.block) >= mdp.num_blocks),
            memory=done.memory,
            executed=state.executed.at[kind].add(1),
        )
        return state, step if settings.record else None

    slots = settings.num_slots(batch)
    assignment = Slots.first(batch, slots, settings.slot_groups)
    state = LoopState(
        rows=mdp.first_rows(batch, prompts.present),
        slots=assignment,
        memory=forwards.first_memory(assignment),
        executed=jnp.zeros(forwards.kinds, jnp.int32),
    )
    shapes = jax.eval_shape(functools.partial(serve, 0), state)[1]

    def iterate(state: LoopState, _: None) -> tuple[LoopState, SlotStep | None]:
        """One forward of the kind that is due; nothing if all rows are done.

        At most one kind is due. (A `switch` among them would copy the cache.)
        """
        found = state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        for kind, is_due in enumerate(forwards.due(state)):
            found = jax.lax.cond(
                is_due, lambda found, k=kind: serve(k, found[0]), lambda found: found, found
            )
        return found

    def iterate_several(
        carry: tuple[LoopState, Records | None],
    ) -> tuple[LoopState, Records | None]:
        """A chunk of iterations, whose stacked outputs go to the records of the rows."""
        state, records = carry
        state, steps = jax.lax.scan(iterate, state, length=_STEPS_PER_CHUNK)
        return state, None if steps is None else state.slots.record(records, steps)

    room = (mdp.most_steps, batch)

    def empty(x: jax.ShapeDtypeStruct) -> Array:
        # The carry of a loop keeps its layout if the dimensions after the row's are one.
        return jnp.zeros((*room, math.prod(x.shape[1:])) if x.ndim > 1 else room, x.dtype)

    records = None
    if settings.record:
        records = by_rows(jax.tree.map(empty, shapes.records), axis=1)
    state, records = jax.lax.while_loop(
        lambda carry: (carry[0].rows.block < mdp.num_blocks).any(),
        iterate_several,
        (state, records),
    )
    if records is not None:
        records = jax.tree.map(
            lambda x, one: x.reshape(*room, *one.shape[1:]), records, shapes.records
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
        by_kind=forwards.by_kind(state),
    )
