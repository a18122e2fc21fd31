"""One compiled program per rollout: denoiser, policy and canvas in a single `lax.scan`.

Everything that fills a canvas in this package goes through `rollout`: training, evaluation and
generation; heuristics and learned policies. The MDP is that of Jazbec et al. (arXiv 2512.09106,
section 3): the state is the canvas, an action is a set of positions to fill, the frozen denoiser
is the environment.

Rows are independent. Each row has its own block index, step count and random stream, so what a row
gets depends neither on the rows beside it nor on when they finish.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_unmask.denoisers.head import score_candidates
from jax_unmask.denoisers.transformer import Denoiser, Params
from jax_unmask.policies.base import Action, Observation, Policy
from jax_unmask.rollout.trajectory import Prompts, Records, RolloutSettings, Trajectory


class _State(NamedTuple):
    """What one step hands to the next; B rows, L canvas positions."""

    canvas: Int[Array, "B L"]
    step_map: Int[Array, "B L"]
    confidence: Array
    step: Int[Array, " B"]
    block: Int[Array, " B"]
    step_in_block: Int[Array, " B"]
    forwards: Int[Array, ""]


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


@functools.partial(jax.jit, static_argnames=("denoiser", "policy", "settings"))
def rollout(
    denoiser: Denoiser,
    denoiser_params: Params,
    policy: Policy,
    policy_params: Params,
    prompts: Prompts,
    keys: Array,
    settings: RolloutSettings,
) -> Trajectory:
    """Fills the canvas of every row, from all masks to the end.

    A row's block ends when it holds no mask any more or after `block_length` steps in it; masks
    that a policy left behind stay. The scan has `gen_length` steps; once every row is done the
    remaining ones skip the denoiser.

    Args:
        denoiser: the dLLM (static).
        denoiser_params: its parameters.
        policy: chooses the positions to fill (static).
        policy_params: its parameters and numeric settings.
        prompts: left-padded prompts.
        keys: typed PRNG keys [B], see `row_keys`.
        settings: static shape of the rollout.

    Returns:
        The trajectory; `records` only if `settings.record`.
    """
    batch = prompts.tokens.shape[0]
    length, block_length = settings.gen_length, settings.block_length
    num_blocks = length // block_length
    mask_id = denoiser.config.mask_token_id
    block_of = jnp.arange(length) // block_length
    attention_mask = jnp.concatenate([prompts.mask, jnp.ones((batch, length), dtype=bool)], axis=1)

    def last_hidden(prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]) -> Array:
        tokens = jnp.concatenate([prompt, canvas], axis=1)
        variables = {"params": denoiser_params}
        hidden = denoiser.apply(variables, tokens, attention_mask, method="hidden")
        return cast(Array, hidden)[:, -length:]

    def observe(state: _State, step_keys: Array) -> tuple[Observation, Bool[Array, "B L"]]:
        hidden = last_hidden(prompts.tokens, state.canvas)
        if settings.guidance > 0:
            # The head is linear, so logits are guided by guiding what goes into it.
            nothing = last_hidden(jnp.full_like(prompts.tokens, mask_id), state.canvas)
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
        )
        in_block = block_of == state.block[:, None]
        masked = state.canvas == mask_id
        obs = Observation(
            candidate=scores.candidate,
            confidence=scores.confidence,
            top_probs=scores.top_probs,
            masked=masked,
            legal=masked & in_block,
            step=state.step,
            step_in_block=state.step_in_block,
            block_start=state.block * block_length,
            entropy=scores.entropy,
            hidden=hidden.astype(jnp.float32) if policy.needs.hidden else None,
            block_length=block_length,
        )
        return obs, in_block

    def advance(state: _State) -> tuple[_State, tuple[Observation, Action, Bool[Array, " B"]]]:
        step_keys = jax.vmap(jax.random.fold_in)(keys, state.step)
        step_keys = jax.vmap(functools.partial(jax.random.split, num=2))(step_keys)
        obs, in_block = observe(state, step_keys[:, 0])
        action = policy(policy_params, obs, step_keys[:, 1])

        active = obs.legal.any(axis=-1)
        fill = action.fill & obs.legal
        canvas = jnp.where(fill, obs.candidate, state.canvas)
        used = state.step_in_block + active
        unfinished = ((canvas == mask_id) & in_block).any(axis=-1)
        next_block = active & (~unfinished | (used >= block_length))
        new = _State(
            canvas=canvas,
            step_map=jnp.where(fill, state.step[:, None], state.step_map),
            confidence=jnp.where(fill, obs.confidence, state.confidence),
            step=state.step + active,
            block=state.block + next_block,
            step_in_block=jnp.where(next_block, 0, used),
            forwards=state.forwards + 1,
        )
        return new, (obs, action, active)

    shapes = jax.eval_shape(advance, _initial_state(batch, length, mask_id))[1]

    def step(state: _State, _: None) -> tuple[_State, Records | None]:
        def skip(state: _State) -> tuple[_State, Any]:
            return state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        state, (obs, action, active) = jax.lax.cond(
            (state.block < num_blocks).any(), advance, skip, state
        )
        return state, Records(obs, action, active) if settings.record else None

    state, records = jax.lax.scan(step, _initial_state(batch, length, mask_id), None, length=length)
    return Trajectory(
        prompts=prompts,
        tokens=state.canvas,
        step_map=state.step_map,
        confidence=state.confidence,
        nfe=state.step,
        forwards=state.forwards,
        records=records,
    )


def _initial_state(batch: int, length: int, mask_id: int) -> _State:
    """An all-mask canvas; every counter at zero."""
    count = jnp.zeros(batch, jnp.int32)
    return _State(
        canvas=jnp.full((batch, length), mask_id, jnp.int32),
        step_map=jnp.full((batch, length), -1, jnp.int32),
        confidence=jnp.zeros((batch, length), jnp.float32),
        step=count,
        block=count,
        step_in_block=count,
        forwards=jnp.zeros((), jnp.int32),
    )
