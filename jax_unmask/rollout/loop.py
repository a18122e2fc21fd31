"""One compiled program per rollout: denoiser, policy and canvas in a single `lax.while_loop`.

Everything that fills a canvas in this package goes through `rollout`: training, evaluation and
generation; heuristics and learned policies; with and without a cache.

Rows are independent. Each row has its own block index, step count and random stream, so what a row
gets depends neither on the rows beside it nor on when they finish, and not on the slot that it sits
in either (see `slots`).

The loop is a `while_loop` and not a scan: how many iterations it takes to serve all rows depends on
what the policy does, a scan over the most there can be would have to skip the rest one by one, and
nothing is differentiated through a rollout.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jaxtyping import Array, Int, Shaped

from jax_unmask.denoisers.positions import window_of
from jax_unmask.denoisers.transformer import Denoiser, Params
from jax_unmask.policies.base import Observation, Policy, select_settings
from jax_unmask.rollout.cached import cached_rollout
from jax_unmask.rollout.mdp import Held, Mdp, Rows, for_rollouts
from jax_unmask.rollout.slots import Slots
from jax_unmask.rollout.trajectory import (
    Prompts,
    Records,
    RolloutSettings,
    Trajectory,
    Watcher,
)
from jax_unmask.runtime.mesh import by_rows, constrain


class _State(NamedTuple):
    """What one iteration hands to the next.

    `records` holds what happened in each slot at each iteration so far: leaves [I, S, ...].
    """

    rows: Rows
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
    batch = prompts.tokens.shape[0]
    length = settings.gen_length
    mdp = Mdp(for_rollouts(denoiser, settings.block_length), denoiser_params, policy, settings)
    if prompts.targets is not None and (settings.cache or settings.temperature > 0):
        raise ValueError(
            f"prompts with targets are rolled out with temperature=0 and cache=None, not "
            f"{settings.temperature} and {settings.cache!r}"
        )
    if settings.cache is not None:
        return cached_rollout(mdp, policy_params, prompts, keys, watch)

    width = mdp.scored

    def last_hidden(tokens: Int[Array, "S P"], held: Held, start: Array | None) -> Array:
        tokens = jnp.concatenate([tokens, held.rows.canvas], axis=1)
        canvas_mask = jnp.ones(held.rows.canvas.shape, dtype=bool)
        attention_mask = jnp.concatenate([held.prompts.mask, canvas_mask], axis=1)
        if start is not None:
            start = start + held.prompts.tokens.shape[1]
        variables = {"params": denoiser_params}
        hidden = mdp.denoiser.apply(
            variables, tokens, attention_mask, last=width, start=start, method="hidden"
        )
        return constrain(cast(Array, hidden), "batch")

    def observe(held: Held, step_keys: Array) -> Observation:
        start, targets = None, held.prompts.targets
        if width < length:
            # Blocks may be cut at both ends of the canvas; a window of their width is not.
            start = jnp.minimum(mdp.block_start(held), length - width)
            targets = None if targets is None else window_of(targets, width, start)
        hidden = last_hidden(held.prompts.tokens, held, start)
        if settings.guidance > 0:
            # The head is linear, so logits are guided by guiding what goes into it.
            nothing = last_hidden(jnp.full_like(held.prompts.tokens, mdp.mask_id), held, start)
            hidden = nothing + (settings.guidance + 1.0) * (hidden - nothing)
        scores = mdp.score(hidden, step_keys, targets)
        seen = hidden.astype(jnp.float32) if policy.needs.hidden else None
        if start is not None:
            scores, seen = jax.tree.map(
                functools.partial(in_canvas, start=start, length=length), (scores, seen)
            )
        return mdp.observation(held, scores, seen)

    def advance(held: Held, params: Params) -> tuple[Rows, Records]:
        step_keys = mdp.step_keys(held)
        obs = observe(held, step_keys[:, 0])
        return mdp.act(held, params, obs, step_keys[:, 1])

    def serve(state: _State) -> tuple[Rows, Records]:
        """One step of the rows that sit in the slots."""
        slots = state.slots
        held = by_rows(Held(*slots.take((state.rows, prompts, keys))))
        return advance(held, select_settings(policy_params, slots.take))

    def iterate(state: _State) -> _State:
        rows, happened = serve(state)
        forwards = state.forwards + 1
        all_rows = by_rows(state.slots.put(state.rows, rows))
        if watch is not None:
            io_callback(watch, None, all_rows.canvas, all_rows.step_map, ordered=True)
        return _State(
            rows=all_rows,
            slots=state.slots.refill(rows.block >= mdp.num_blocks, forwards),
            forwards=forwards,
            records=None if state.records is None else _write(state, happened),
        )

    state = _State(
        rows=mdp.first_rows(batch, prompts.present),
        slots=Slots.first(batch, settings.num_slots(batch), settings.slot_groups),
        forwards=jnp.zeros((), jnp.int32),
        records=None,
    )
    if settings.record:
        # The most iterations that there can be: every round of rows takes all steps.
        most = mdp.most_steps * -(-batch // settings.num_slots(batch))
        shapes = jax.eval_shape(serve, state)[1]
        records = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        state = state._replace(records=by_rows(records, axis=1))
    state = jax.lax.while_loop(lambda s: (s.rows.block < mdp.num_blocks).any(), iterate, state)
    rows = state.rows
    return Trajectory(
        prompts=prompts,
        tokens=rows.canvas,
        step_map=rows.step_map,
        confidence=rows.confidence,
        nfe=rows.step,
        forwards=state.forwards,
        slots=settings.num_slots(batch),
        records=by_rows(state.slots.by_row(state.records, rows.step, mdp.most_steps), axis=1),
    )


def in_canvas(
    values: Shaped[Array, "S W ..."], start: Int[Array, " S"], length: int
) -> Shaped[Array, "S L ..."]:
    """What is known of a window of each canvas, in its place; 0 elsewhere.

    Args:
        values: of the positions of the windows.
        start: first position of each window, at most L - W.
        length: L.
    """
    whole = jnp.zeros((values.shape[0], length, *values.shape[2:]), values.dtype)
    place = jax.vmap(lambda row, x, at: jax.lax.dynamic_update_slice_in_dim(row, x, at, 0))
    return place(whole, values, start)


def _write(state: _State, happened: Records) -> Records:
    """Records with those of this iteration; zeros where a slot was idle."""
    active = happened.active

    def write(buffer: Array, new: Array) -> Array:
        new = jnp.where(active.reshape(-1, *(1 for _ in new.shape[1:])), new, jnp.zeros_like(new))
        return jax.lax.dynamic_update_index_in_dim(buffer, new, state.forwards, axis=0)

    return jax.tree.map(write, state.records, happened)
