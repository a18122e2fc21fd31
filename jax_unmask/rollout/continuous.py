"""A rollout that never ends: rows are replaced while others run (continuous batching).

The same loop as `rollout.loop`, in calls of a few steps. Between two calls rows that are done make
room for new prompts; within a call, a row that is done leaves its slot to the row that has waited
longest. The state stays on the device, and all shapes are fixed, so one program serves all calls.
A row gets what `rollout` would give it, whatever runs beside it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from jax_unmask.denoisers.cache import KeyValueCache
from jax_unmask.denoisers.transformer import Denoiser, Params
from jax_unmask.policies.base import PerRow, Policy
from jax_unmask.rollout.forwards import Carry, LoopState
from jax_unmask.rollout.loop import Loop, row_keys
from jax_unmask.rollout.slots import Slots, where_rows
from jax_unmask.rollout.trajectory import Prompts, RolloutSettings
from jax_unmask.runtime import streams


@struct.dataclass
class Queue(Slots):
    """Slots that go to the waiting row of the lowest number `arrival`; one group.

    Rows without a slot that are not done wait.
    """

    arrival: Int[Array, " B"]

    def refill(self, is_done: Bool[Array, " B"]) -> "Queue":
        """Gives the slots of rows that are done to waiting rows, in order of arrival."""
        if self.is_static:
            return self
        (row,) = self.row
        waits = ~is_done & jnp.ones(self.size, bool).at[row].set(False)
        order = jnp.argsort(jnp.where(waits, self.arrival, jnp.iinfo(jnp.int32).max))
        free = is_done[row]
        turn = jnp.cumsum(free) - 1
        row = jnp.where(free & (turn < waits.sum()), order[turn], row).astype(jnp.int32)
        return dataclasses.replace(self, row=row[None])


@struct.dataclass
class Changes:
    """Rows that a call begins with, or stops; NumPy arrays, B rows. `settings`: of the policy."""

    is_new: Bool[np.ndarray, " B"]
    is_stopped: Bool[np.ndarray, " B"]
    prompts: Prompts
    seed: Int[np.ndarray, " B"]
    turn: Int[np.ndarray, " B"]
    arrival: Int[np.ndarray, " B"]
    settings: dict[str, np.ndarray]


@struct.dataclass
class _Carry:
    """State of the batch that stays on the device between two calls."""

    prompts: Prompts
    keys: Array
    settings: dict[str, Array]
    state: LoopState
    cache: KeyValueCache | None


class Progress(NamedTuple):
    """State of a row: canvas, step map and confidences [L], forwards so far."""

    tokens: Int[np.ndarray, " L"]
    step_map: Int[np.ndarray, " L"]
    confidence: np.ndarray
    nfe: int
    is_done: bool


@jax.jit
def answer_keys(seed: Int[Array, " B"], turn: Int[Array, " B"]) -> Array:
    """The typed PRNG key of each answer, [B]: turn k of a seed, see `runtime.streams`."""

    def of_answer(seed: Array, turn: Array) -> Array:
        return row_keys(streams.stream(streams.root(seed), "turn", turn), 1)[0]  # type: ignore[arg-type]

    return jax.vmap(of_answer)(seed, turn)


class ContinuousRollout:
    """Rows that are filled side by side and replaced one by one.

    Args:
        denoiser, denoiser_params: the dLLM.
        policy, policy_params: chooses the positions to fill; its scalar params are those of rows
            that name no others.
        settings: shape of the canvases; nothing is recorded.
        prompt_length: longest prompt.
        slots: rows per forward.
        waiting: further rows on the device, which get the slots of rows that are done within a
            call. Without, those slots are idle until the next call.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        denoiser_params: Params,
        policy: Policy,
        policy_params: Params,
        settings: RolloutSettings,
        *,
        prompt_length: int,
        slots: int,
        waiting: int = 0,
    ) -> None:
        rows = slots + waiting
        self.rows, self.prompt_length = rows, prompt_length
        self._static = denoiser, policy, dataclasses.replace(settings, record=False, slots=slots)
        self._params = denoiser_params
        defaults, self._shared = _split(policy_params)
        self._defaults = {name: np.asarray(value) for name, value in defaults.items()}
        self._arrived = 0
        self._nothing = self._empty()
        self._changes = self._empty()
        keys = answer_keys(self._nothing.seed, self._nothing.turn)
        prompts = jax.tree.map(jnp.asarray, self._nothing.prompts)
        own = jax.tree.map(jnp.asarray, self._nothing.settings)
        self._carry = _begin(*self._static, self._params, prompts, keys, own)

    @property
    def settings(self) -> tuple[str, ...]:
        """Settings of the policy that each row has for itself."""
        return tuple(self._defaults)

    def put(
        self,
        row: int,
        prompt: Sequence[int],
        *,
        seed: int = 0,
        turn: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Places a prompt into a row, with the next call.

        Args:
            row: one that is done.
            prompt: its tokens, at most `prompt_length`.
            seed, turn: of its random numbers.
            settings: of the policy, by their names in its params.
        """
        changes, length = self._changes, len(prompt)
        changes.is_new[row] = True
        changes.prompts.mask[row] = np.arange(self.prompt_length) >= self.prompt_length - length
        changes.prompts.tokens[row, self.prompt_length - length :] = prompt
        changes.seed[row], changes.turn[row] = seed, turn
        changes.arrival[row] = self._arrived = self._arrived + 1
        for name, value in {**self._defaults, **(settings or {})}.items():
            changes.settings[name][row] = value

    def stop(self, row: int) -> None:
        """Takes no further step of a row, from the next call on."""
        self._changes.is_stopped[row] = True

    def advance(self, steps: int, *, until_idle: bool = False) -> Array:
        """Takes up to so many steps of all rows; returns without waiting for them.

        Args:
            steps: at most so many.
            until_idle: ends as soon as a slot has nothing to do.

        Returns:
            What `progress` reads.
        """
        changes, self._changes = self._changes, self._empty()
        limits = np.int32(steps), np.bool_(until_idle)
        self._carry, packed = _advance(
            *self._static, self._params, self._shared, self._carry, changes, *limits
        )
        return packed

    def progress(self, packed: Array) -> list[Progress]:
        """States of all rows after a call of `advance`; waits for it."""
        values = np.asarray(packed)
        length = (values.shape[1] - 2) // 3
        confidence = values[:, 2 * length : 3 * length].view(np.float32)
        return [
            Progress(
                tokens=row[:length],
                step_map=row[length : 2 * length],
                confidence=sure,
                nfe=int(row[-2]),
                is_done=bool(row[-1]),
            )
            for row, sure in zip(values, confidence, strict=True)
        ]

    def _empty(self) -> Changes:
        rows = self.rows
        tokens = np.full((rows, self.prompt_length), self._static[0].config.pad_token_id or 0)
        return Changes(
            is_new=np.zeros(rows, bool),
            is_stopped=np.zeros(rows, bool),
            prompts=Prompts(
                tokens=tokens.astype(np.int32),  # type: ignore[arg-type]
                mask=np.zeros((rows, self.prompt_length), bool),  # type: ignore[arg-type]
            ),
            seed=np.zeros(rows, np.uint32),
            turn=np.zeros(rows, np.int32),
            arrival=np.zeros(rows, np.int32),
            settings={
                name: np.full(rows, value, value.dtype) for name, value in self._defaults.items()
            },
        )


def _split(params: Params) -> tuple[dict[str, Any], Params]:
    """The scalars among the params, and all others."""
    if not isinstance(params, dict):
        return {}, params
    kinds = int | float | np.ndarray | jax.Array
    numbers = {
        k: leaf for k, leaf in params.items() if isinstance(leaf, kinds) and not np.ndim(leaf)
    }
    return numbers, {name: leaf for name, leaf in params.items() if name not in numbers}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(
    denoiser: Denoiser,
    policy: Policy,
    settings: RolloutSettings,
    denoiser_params: Params,
    prompts: Prompts,
    keys: Array,
    own: dict[str, Array],
) -> _Carry:
    """All rows done, none in use."""
    rows = prompts.tokens.shape[0]
    loop = Loop.of(denoiser, denoiser_params, policy, {}, prompts, keys, settings)
    first = Slots.first(rows, settings.num_slots(rows, prompts.tokens.shape[1]), 1)
    slots = Queue(first.row, first.waiting, first.size, jnp.zeros(rows, jnp.int32))
    state, cache = loop.first(slots, jnp.zeros(rows, bool))
    return _Carry(prompts, keys, own, state, cache)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(5,))
def _advance(
    denoiser: Denoiser,
    policy: Policy,
    settings: RolloutSettings,
    denoiser_params: Params,
    shared: Params,
    carry: _Carry,
    changes: Changes,
    steps: Int[Array, ""],
    until_idle: Bool[Array, ""],
) -> tuple[_Carry, Int[Array, "B 3L+2"]]:
    """Replaces rows, takes steps, and packs where all rows stand into one array of integers."""
    is_new = changes.is_new

    choose: Callable[[Any, Any], Any] = functools.partial(where_rows, jnp.asarray(is_new))
    keys = answer_keys(changes.seed, changes.turn)
    prompts, own = choose((changes.prompts, changes.settings), (carry.prompts, carry.settings))
    keys = jnp.where(is_new, keys, carry.keys)
    params = shared
    if own:
        params = {**shared, **{name: PerRow(values) for name, values in own.items()}}
    loop = Loop.of(denoiser, denoiser_params, policy, params, prompts, keys, settings)

    state = carry.state
    assert isinstance(state.slots, Queue)
    arrival = choose(changes.arrival, state.slots.arrival)
    slots = dataclasses.replace(state.slots, arrival=arrival)
    rows = choose(loop.mdp.first_rows(len(is_new), None), state.rows)
    stopped = jnp.where(changes.is_stopped & ~is_new, loop.mdp.blocks.number, rows.block)
    rows = rows._replace(block=stopped)
    memory = state.memory
    if memory is not None:
        fresh = loop.forwards.first_memory(slots)
        assert fresh is not None
        memory = memory._replace(counts=choose(fresh.counts, memory.counts))
    state = LoopState(rows, slots.refill(loop.is_done(rows)), memory, state.executed)

    shapes = loop.shapes(state, carry.cache)
    first = state.executed.sum()

    def goes_on(looping: Carry) -> Array:
        state = looping[0]
        is_idle = state.slots.take(loop.is_done(state.rows)).any() & until_idle
        is_first = state.executed.sum() == first
        is_in_time = (state.executed.sum() - first < steps) & (is_first | ~is_idle)
        return is_in_time & loop.is_unfinished(state)

    looping: Carry = (state, carry.cache, None)
    state, cache, _ = jax.lax.while_loop(
        goes_on, lambda looping: loop.chunk(looping, shapes, 1), looping
    )
    rows = state.rows
    sure = jax.lax.bitcast_convert_type(rows.confidence, jnp.int32)
    last = jnp.stack([rows.step, loop.is_done(rows).astype(jnp.int32)], axis=1)
    packed = jnp.concatenate([rows.canvas, rows.step_map, sure, last], axis=1)
    return _Carry(prompts, keys, own, state, cache), packed
