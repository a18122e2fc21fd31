"""The denoiser's forwards in a rollout with a cache.

There are two kinds. A full forward computes the whole sequences of a few slots and stores their
keys and values. A window forward computes a few positions of every slot, which attend to the stored
ones. Rows are at different places of their blocks, so some need a full forward while others can go
on with a window. Little is wasted: full forwards wait until enough slots need one
(`Cache.refresh_rows`) or no slot can do anything else.

With cache "block" the rows of a prompt (`RolloutSettings.prompt_rows`) share its keys and values.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_unmask.denoisers.cache import KeyValueCache, Written, empty_cache
from jax_unmask.denoisers.head import Scores
from jax_unmask.rollout.forwards import (
    Carry,
    Computed,
    Counts,
    LoopState,
    Memory,
    PlainForwards,
    Readout,
)
from jax_unmask.rollout.slots import ALL_SLOTS, Slots, SlotSubset
from jax_unmask.rollout.trajectory import Forwards
from jax_unmask.runtime.mesh import by_rows


class CachedForwards(PlainForwards):
    """Full forwards (kind 0) and window forwards (kind 1), with a cache (see `caching.Cache`).

    Positions outside of the window keep their scores from the full forward that opened the block
    (with cache "block": 0 for positions of later blocks). Where the head scores the next token, the
    first position of a window has none before it; it keeps the scores of the opening forward. A
    policy fills positions of the current block only, and those are in the window.

    Raises:
        ValueError: the cache does not fit the denoiser, or the sequence is too long for it.
    """

    kinds = 2

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        cache, settings = self.settings.cache, self.settings
        assert cache is not None
        cache.check_fits(self.config)
        if self.length > self.config.max_length:
            raise ValueError(
                f"a sequence of {self.length} tokens is longer than max_length="
                f"{self.config.max_length} of this denoiser; shorten the prompt or the canvas"
            )
        slots = settings.num_slots(self.rows, self.prompt_length) // settings.slot_groups
        group = self.rows // settings.slot_groups
        self.shares_prompts = settings.shares_prompts and group % settings.prompt_rows == 0
        # Rows of a prompt that another slot has need no forward of theirs.
        needing = -(-slots // settings.prompt_rows) if self.shares_prompts else slots
        self.per_group = cache.rows_per_refresh(needing)
        self.window = cache.window(settings.gen_length, settings.block_length)
        self.is_exact = cache.kind == "block"
        self.sees_later = not self.is_exact and cache.horizon is None
        self.refresh_every = cache.refresh_every

    def first_memory(self, slots: Slots) -> Memory:
        """An empty cache, and readouts of 0."""
        count, none_yet = slots.row.size, jnp.zeros(self.rows, jnp.int32)
        canvas = (count, self.canvas_length)
        scores = Scores(
            candidate=jnp.zeros(canvas, jnp.int32),
            confidence=jnp.zeros(canvas),
            top_probs=jnp.zeros((*canvas, self.needs.top_k)),
            entropy=jnp.zeros(canvas) if self.needs.entropy else None,
            of_tokens=jnp.zeros(canvas) if self.needs.filled else None,
        )
        states = (*canvas, self.config.hidden_size)
        hidden = jnp.zeros(states, self.config.dtype) if self.needs.hidden else None
        return Memory(
            readout=by_rows(Readout(scores, hidden)),
            counts=Counts(
                written=none_yet - 1 if self.is_exact else none_yet, full=none_yet, window=none_yet
            ),
            held=jnp.full(count, -1, jnp.int32) if self.shares_prompts else None,
        )

    def first_cache(self, slots: Slots) -> KeyValueCache:
        """An empty cache."""
        return empty_cache(self.config, slots.row.size, self.length)

    def due(self, state: LoopState) -> list[Bool[Array, ""]]:
        """Full forwards while enough slots of a group need one, or while no slot can go on."""
        (is_any_unfinished,) = super().due(state)
        needs_full, can_go_on = self._phases(state)
        wanted = self._first_of_prompts(state, needs_full)
        enough = wanted.reshape(state.slots.row.shape).sum(axis=1) >= self.per_group
        is_full = enough.any() | (needs_full.any() & ~can_go_on.any())
        return [is_full, is_any_unfinished & ~is_full]

    def run(self, kind: int, state: LoopState, cache: KeyValueCache | None) -> Computed:
        """One forward of a kind."""
        assert state.memory is not None and cache is not None
        return [self._full, self._window][kind](state, state.memory, cache)

    def by_kind(self, state: LoopState) -> Forwards:
        """Forwards by kind."""
        assert state.memory is not None
        counts = state.memory.counts
        return Forwards(
            full=counts.full,
            cached=counts.window,
            full_executed=state.executed[0],
            cached_executed=state.executed[1],
            full_rows=self.per_group * self.settings.slot_groups,
            full_tokens=self.prompt_length if self.is_exact else self.length,
            cached_tokens=self.window,
            length=self.length,
        )

    def _phases(self, state: LoopState) -> tuple[Bool[Array, " S"], Bool[Array, " S"]]:
        """Slots whose row needs a full forward, and those whose row can go on with a window."""
        assert state.memory is not None
        rows, counts = by_rows(state.slots.take((state.rows, state.memory.counts)))
        unfinished = rows.block < self.blocks.number
        if self.is_exact:
            needs = counts.written < 0
        elif self.refresh_every:
            needs = rows.step_in_block % self.refresh_every == 0
        else:
            needs = rows.step_in_block == 0
        return unfinished & needs, unfinished & ~needs

    def _first_of_prompts(self, state: LoopState, needs: Bool[Array, " S"]) -> Bool[Array, " S"]:
        """One of the slots that need a full forward for each prompt that no slot holds."""
        if not self.shares_prompts:
            return needs
        prompt, is_held, _ = self._holders(state, needs)
        needs = needs.reshape(prompt.shape) & ~is_held
        same = prompt[:, :, None] == prompt[:, None, :]
        has_earlier = (jnp.tril(same, -1) & needs[:, None, :]).any(axis=-1)
        return (needs & ~has_earlier).reshape(-1)

    def _holders(
        self, state: LoopState, needs: Bool[Array, " S"]
    ) -> tuple[Int[Array, "G SG"], Bool[Array, "G SG"], Int[Array, "G SG"]]:
        """Prompts of the slots; which of those that need one find it in a slot; and in which."""
        assert state.memory is not None and state.memory.held is not None
        prompt = state.slots.row // self.settings.prompt_rows
        same = prompt[:, :, None] == state.memory.held.reshape(prompt.shape)[:, None, :]
        is_held = needs.reshape(prompt.shape) & same.any(axis=-1)
        return prompt, is_held, same.argmax(axis=-1).astype(jnp.int32)

    def share_prompts(self, carry: Carry) -> Carry:
        """Gives rows the keys and values of their prompt that another slot holds.

        Rows get slots in order: the next row of a slot is of the same prompt or of a later one. So
        some slot holds a prompt until all of its rows have it, if the first rows are served first.
        """
        if not self.shares_prompts:
            return carry

        def waiting(carry: Carry) -> Bool[Array, ""]:
            return self._holders(carry[0], self._phases(carry[0])[0])[1].any()

        def share(carry: Carry) -> Carry:
            state, cache, records = carry
            assert state.memory is not None
            _, is_held, holder = self._holders(state, self._phases(state)[0])
            slot = jnp.where(is_held, state.slots.row, self.rows).argmin(axis=1, keepdims=True)
            one = SlotSubset(slot.astype(jnp.int32))
            source = jnp.take_along_axis(holder, slot, axis=1)
            is_put = one.take(is_held.reshape(-1))
            cache = jax.tree.map(
                lambda x: one.copy_from(source, x, self.prompt_length, is_put), cache
            )
            readout = jax.tree.map(jnp.zeros_like, one.take(state.memory.readout))
            memory = self._put(state.memory, state.slots, one, is_put, readout, full=0)
            return state._replace(memory=memory), cache, records

        return jax.lax.while_loop(waiting, share, carry)

    def _put(
        self,
        memory: Memory,
        slots: Slots,
        chosen: SlotSubset,
        is_served: Bool[Array, " F"],
        readout: Readout,
        full: Bool[Array, " F"] | int,
    ) -> Memory:
        """The memory after some slots were served: their readout, their rows' full forwards."""
        slots, held = chosen.of(slots), memory.held
        counts = slots.take(memory.counts)
        counts = counts._replace(full=counts.full + full)
        if self.is_exact:
            counts = counts._replace(written=jnp.where(is_served, 0, counts.written))
        if held is not None:
            prompt = slots.row.reshape(-1) // self.settings.prompt_rows
            held = chosen.put(held, prompt, is_served)
        return Memory(
            readout=chosen.put(memory.readout, readout, is_served),
            counts=slots.put(memory.counts, counts),
            held=held,
        )

    def _full(self, state: LoopState, memory: Memory, cache: KeyValueCache) -> Computed:
        """A forward over the whole sequences of a few slots that need one.

        With "prefix" and "dual" their rows take a step with it. With "block" it runs over the
        prompt alone, and no row takes a step.
        """
        # 1. The slots that are served: those that need it, filled up with some that do not.
        needs_full = self._first_of_prompts(state, self._phases(state)[0])
        chosen = state.slots.choose(needs_full, self.per_group)
        slots, is_served = chosen.of(state.slots), chosen.take(needs_full)
        batch = self.batch_in(slots, state.rows)
        # 2. The forward, which writes keys and values of the served rows into the cache.
        if self.is_exact:
            tokens, real, last = batch.prompts.tokens, batch.prompts.mask, 1
            # A prompt that fills no block needs none: the window of its first block holds it.
            needed = is_served & (real.sum(axis=-1) >= self.settings.block_length)
        else:
            tokens, real = self.sequence(batch)
            last, needed = self.canvas_length, is_served
        positions = batch.positions[:, : tokens.shape[1]]
        fill = functools.partial(chosen.put_in_layer, is_put=is_served)
        hidden, filled = self._forward(tokens, real, positions, last=last, cache=cache, put=fill)
        # 3. What the policy reads: of the whole canvas, or (with "block") nothing yet.
        step_keys = self.step_keys(batch)
        if self.is_exact:
            readout = jax.tree.map(jnp.zeros_like, chosen.take(memory.readout))
            acting = jnp.zeros_like(is_served)
        else:
            readout = self.read_out(hidden, step_keys[:, 0], batch.rows.canvas)
            acting = is_served
        memory = self._put(memory, state.slots, chosen, is_served, readout, full=needed)
        return Computed(memory, filled, chosen, batch, readout, step_keys[:, 1], acting)

    def _window(self, state: LoopState, memory: Memory, cache: KeyValueCache) -> Computed:
        """A forward over the window of every slot; rows that can go on with it take a step."""
        # 1. Which block each window begins with. With "block", a row that has finished a block
        # first computes it once more to write its final keys and values, and fills nothing.
        _, can_go_on = self._phases(state)
        slots = state.slots
        batch, counts = self.batch_in(slots, state.rows), slots.take(memory.counts)
        block = counts.written if self.is_exact else batch.rows.block
        acting = can_go_on & (block == batch.rows.block)
        # 2. The positions of the windows in the sequence (some may lie after its end), and the
        # positions that they attend to besides each other: all before, and with full attention all
        # after (unless there is a horizon).
        tokens, real = self.sequence(batch)
        first = block * self.settings.block_length - self.blocks.taken_by_prompt(batch)
        start = (self.canvas_start + first)[:, None]
        place = start + jnp.arange(self.window)
        everywhere = jnp.arange(self.length)
        cached_mask = (everywhere < start) | (everywhere >= self.canvas_end)
        if self.sees_later:
            cached_mask |= everywhere >= start + self.window

        def of_window(values: Array) -> Array:
            return jnp.take_along_axis(values, jnp.minimum(place, self.length - 1), axis=1)

        mask = (place < self.canvas_end) & of_window(real)
        # 3. The forward.
        hidden, new = self._forward(
            of_window(tokens),
            mask,
            of_window(batch.positions),
            cache=cache,
            cached_mask=cached_mask & real,
            keep=self.is_exact,
        )
        written = None
        if self.is_exact:
            writing = can_go_on & ~acting
            written = Written(new, at=place, is_written=writing[:, None] & mask)
            counts = counts._replace(written=counts.written + writing)
        # 4. What the policy reads, new in the windows of the rows that take a step.
        step_keys = self.step_keys(batch)
        is_new = acting[:, None] & (place >= self.canvas_start) & (place < self.canvas_end)
        if self.config.logits_shift:
            is_new = is_new.at[:, 0].set(False)
        # Out of bounds, where the scatter drops it, if it is not new.
        at = jnp.where(is_new, place - self.canvas_start, self.canvas_length)
        write = jax.vmap(lambda old, new, at: old.at[at].set(new, mode="drop"))
        readout = jax.tree.map(
            lambda old, new: write(old, new, at),
            memory.readout,
            self.read_out(hidden, step_keys[:, 0], of_window(tokens)),
        )
        counts = slots.put(memory.counts, counts._replace(window=counts.window + can_go_on))
        memory = memory._replace(readout=readout, counts=counts)
        return Computed(memory, written, ALL_SLOTS, batch, readout, step_keys[:, 1], acting)
