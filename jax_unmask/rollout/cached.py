"""The rollout with a cache of keys and values (see `caching.Cache`).

Rows are at different places of their blocks, so at one time some need a forward over their whole
sequence and others can read the cache. An iteration of the loop is one or the other. A forward over
whole sequences takes a few slots that need one, as many as its fixed number of rows; all others
stay as they are. A forward that reads the cache takes the current window of every slot; slots that
wait for the other kind stay as they are. So what a row gets never depends on when it is served.

Little is wasted: a row waits only as long as fewer than `refresh_rows` slots wait, an eighth of
them unless said otherwise, and a forward over whole sequences has rows without use only when no row
can do anything else.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Int

from jax_unmask.denoisers import cached as transformer
from jax_unmask.denoisers.cached import KeyValueCache
from jax_unmask.denoisers.head import Scores
from jax_unmask.denoisers.positions import default_positions
from jax_unmask.denoisers.transformer import Params
from jax_unmask.policies.base import select_settings
from jax_unmask.rollout.mdp import Held, Mdp, Rows
from jax_unmask.rollout.slots import Chosen, Slots
from jax_unmask.rollout.trajectory import Forwards, Prompts, Records, Trajectory, Watcher
from jax_unmask.runtime.mesh import by_rows


class _Own(NamedTuple):
    """What a row has beside its `Rows`.

    Attributes:
        written: with cache "block": the first of its blocks that the cache does not hold; -1 before
            it holds the prompt.
        full: forwards over the whole sequence so far.
        cached: forwards over a few positions so far.
    """

    written: Int[Array, " B"]
    full: Int[Array, " B"]
    cached: Int[Array, " B"]


class _Seen(NamedTuple):
    """What the denoiser said of each canvas position when it last computed it; 0 before."""

    scores: Scores
    hidden: Array | None


class _State(NamedTuple):
    """What one iteration hands to the next. Cache and `seen` belong to slots, `records` to rows."""

    rows: Rows
    own: _Own
    slots: Slots
    cache: KeyValueCache
    seen: _Seen
    full_executed: Int[Array, ""]
    cached_executed: Int[Array, ""]
    records: Records | None


class _Window(NamedTuple):
    """The W positions that a row computes when it reads the cache.

    Attributes:
        place: where they are in the sequence of prompt and canvas, or behind its end.
        tokens: what they hold.
        positions: in the text.
        mask: they exist, and are no padding.
        cached_mask: positions of the sequence whose cached keys they see.
    """

    place: Int[Array, "S W"]
    tokens: Int[Array, "S W"]
    positions: Int[Array, "S W"]
    mask: Bool[Array, "S W"]
    cached_mask: Bool[Array, "S K"]


def cached_rollout(
    mdp: Mdp, policy_params: Params, prompts: Prompts, keys: Array, watch: Watcher | None = None
) -> Trajectory:
    """`loop.rollout` with the cache of the settings.

    An observation holds what the last forward that computed a position said of it: for positions
    outside the window that is the forward over the whole sequence which opened the block (with
    cache "block": for those of later blocks nothing yet, which is 0). Where the head scores the
    next token, the first position of a window has none before it; it keeps what the opening forward
    said. A policy may fill positions of the current block only, and those are fresh.

    Args:
        mdp: denoiser, policy and settings.
        policy_params: as of `loop.rollout`, and so are the others.
        prompts: left-padded prompts.
        keys: typed PRNG keys [B].
        watch: called on the host after each iteration.

    Raises:
        ValueError: the cache does not fit the denoiser, or the sequence is too long for it.
    """
    return _CachedRollout(mdp, policy_params, prompts, keys, watch).run()


class _CachedRollout:
    """Everything that does not change during one rollout, and the iterations of its loop."""

    def __init__(
        self, mdp: Mdp, policy_params: Params, prompts: Prompts, keys: Array, watch: Watcher | None
    ) -> None:
        cache, config, settings = mdp.settings.cache, mdp.denoiser.config, mdp.settings
        assert cache is not None
        cache.check(config)
        self.mdp, self.params, self.prompts, self.keys = mdp, policy_params, prompts, keys
        self.config, self.watch = config, watch
        self.batch, self.prompt_length = prompts.tokens.shape
        self.length = self.prompt_length + settings.gen_length
        if self.length > config.max_length:
            raise ValueError(
                f"a sequence of {self.length} tokens is longer than max_length="
                f"{config.max_length} of this denoiser; shorten the prompt or the canvas"
            )
        self.slots = settings.num_slots(self.batch)
        self.per_group = cache.rows_per_refresh(self.slots // settings.slot_groups)
        self.window = cache.window(settings.gen_length, settings.block_length)
        self.is_exact = cache.kind == "block"
        self.refresh_every = cache.refresh_every

    def run(self) -> Trajectory:
        """The loop, from empty canvases to the trajectory."""
        settings = self.mdp.settings
        state = jax.lax.while_loop(self._is_unfinished, self._iterate, self._first())
        records = state.records
        if records is not None:
            records = by_rows(jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), records), axis=1)
        rows, own = state.rows, state.own
        return Trajectory(
            prompts=self.prompts,
            tokens=rows.canvas,
            step_map=rows.step_map,
            confidence=rows.confidence,
            nfe=rows.step,
            forwards=state.full_executed + state.cached_executed,
            slots=self.slots,
            records=records,
            by_kind=Forwards(
                full=own.full,
                cached=own.cached,
                full_executed=state.full_executed,
                cached_executed=state.cached_executed,
                full_rows=self.per_group * settings.slot_groups,
                full_tokens=self.prompt_length if self.is_exact else self.length,
                cached_tokens=self.window,
                length=self.length,
            ),
        )

    def _first(self) -> _State:
        settings, needs, slots = self.mdp.settings, self.mdp.policy.needs, self.slots
        canvas, zero = (slots, settings.gen_length), jnp.zeros((), jnp.int32)
        count = jnp.zeros(self.batch, jnp.int32)
        scores = Scores(
            candidate=jnp.zeros(canvas, jnp.int32),
            confidence=jnp.zeros(canvas),
            top_probs=jnp.zeros((*canvas, needs.top_k)),
            entropy=jnp.zeros(canvas) if needs.entropy else None,
        )
        hidden = jnp.zeros((*canvas, self.config.hidden_size)) if needs.hidden else None
        state = _State(
            rows=self.mdp.first_rows(self.batch, self.prompts.present),
            own=_Own(written=count - 1 if self.is_exact else count, full=count, cached=count),
            slots=Slots.first(self.batch, slots, settings.slot_groups),
            cache=transformer.empty_cache(self.config, slots, self.length),
            seen=by_rows(_Seen(scores, hidden)),
            full_executed=zero,
            cached_executed=zero,
            records=None,
        )
        if not settings.record:
            return state
        # By rows and their own steps: iterations that a row sat out leave no gap.
        shapes = jax.eval_shape(self._read, state)[1]
        room = (self.batch, self.mdp.most_steps)
        records = jax.tree.map(lambda x: jnp.zeros((*room, *x.shape[1:]), x.dtype), shapes)
        return state._replace(records=by_rows(records))

    def _is_unfinished(self, state: _State) -> Bool[Array, ""]:
        return (state.rows.block < self.mdp.num_blocks).any()

    def _iterate(self, state: _State) -> _State:
        """Forwards over whole sequences while there is reason to, then such that read the cache.

        Loops within the loop, not branches: what a loop carries stays where it is.
        """
        state = jax.lax.while_loop(self._is_full_next, self._full, state)

        def can_read(state: _State) -> Bool[Array, ""]:
            return ~self._is_full_next(state) & self._is_unfinished(state)

        return jax.lax.while_loop(can_read, lambda state: self._read(state)[0], state)

    def _phase(self, state: _State) -> tuple[Bool[Array, " S"], Bool[Array, " S"]]:
        """Slots whose row needs a forward over its whole sequence, and those that can read."""
        rows, own = by_rows(state.slots.take((state.rows, state.own)))
        alive = rows.block < self.mdp.num_blocks
        if self.is_exact:
            needs = own.written < 0
        elif self.refresh_every:
            needs = rows.step_in_block % self.refresh_every == 0
        else:
            needs = rows.step_in_block == 0
        return alive & needs, alive & ~needs

    def _is_full_next(self, state: _State) -> Bool[Array, ""]:
        waiting, ready = self._phase(state)
        enough = waiting.reshape(state.slots.row.shape[0], -1).sum(axis=1) >= self.per_group
        return enough.any() | (waiting.any() & ~ready.any())

    def _full(self, state: _State) -> _State:
        """A forward over the whole sequences of a few slots that need one.

        With "prefix" and "dual" their rows take a step with it. With "block" it runs over the
        prompt alone, and fills nothing.
        """
        waiting, _ = self._phase(state)
        chosen = Chosen.first(waiting, self.per_group, state.slots)
        slots, is_served = chosen.of(state.slots), chosen.take(waiting)
        held, own = self._held(slots, state), state.own
        mine = slots.take(own)

        def put(values: Array, new: Array) -> Array:
            return chosen.put(values, new, is_served)

        if self.is_exact:
            tokens, mask, last = held.prompts.tokens, held.prompts.mask, 1
            # A prompt that fills no block needs none: the window of its first block holds it.
            used = is_served & (mask.sum(axis=-1) >= self.mdp.settings.block_length)
            mine = mine._replace(written=jnp.where(is_served, 0, mine.written))
        else:
            tokens, mask = self._sequence(held)
            last, used = self.mdp.settings.gen_length, is_served
        hidden, cache = transformer.fill(
            self.config, self.mdp.denoiser_params, state.cache, put, tokens, mask, last
        )
        own = slots.put(own, mine._replace(full=mine.full + used))
        state = state._replace(own=own, cache=cache, full_executed=state.full_executed + 1)
        if self.is_exact:
            nothing = jax.tree.map(jnp.zeros_like, chosen.take(state.seen))
            return state._replace(seen=self._put_all(put, state.seen, nothing))
        step_keys = self.mdp.step_keys(held)
        seen = _Seen(self.mdp.score(hidden, step_keys[:, 0]), self._observed(hidden))
        state = state._replace(seen=self._put_all(put, state.seen, seen))
        return self._act(state, slots, held, seen, is_served, step_keys[:, 1])[0]

    def _read(self, state: _State) -> tuple[_State, Records]:
        """A forward over the window of every slot, and a step of the rows that can take one."""
        _, ready = self._phase(state)
        slots = state.slots
        held, mine = self._held(slots, state), slots.take(state.own)
        block = mine.written if self.is_exact else held.rows.block
        # A row that writes a block fills nothing meanwhile.
        acting = ready & (block == held.rows.block)
        window = self._look(held, block)
        # A row that has finished a block first writes it.
        writing, at = ready & ~acting, None
        if self.is_exact:
            at = jnp.where(writing[:, None] & window.mask, window.place, self.length)
        hidden, cache = transformer.read(
            self.config,
            self.mdp.denoiser_params,
            state.cache,
            window.tokens,
            window.positions,
            window.mask,
            window.cached_mask,
            at,
        )
        mine = mine._replace(cached=mine.cached + ready)
        if self.is_exact:
            state = state._replace(cache=cache)
            mine = mine._replace(written=mine.written + writing)
        step_keys = self.mdp.step_keys(held)
        new = _Seen(self.mdp.score(hidden, step_keys[:, 0]), self._observed(hidden))
        seen = self._merge(state.seen, new, window.place, acting)
        state = state._replace(
            own=slots.put(state.own, mine), seen=seen, cached_executed=state.cached_executed + 1
        )
        return self._act(state, slots, held, seen, acting, step_keys[:, 1])

    def _act(
        self,
        state: _State,
        slots: Slots,
        held: Held,
        seen: _Seen,
        acting: Bool[Array, " F"],
        step_keys: Array,
    ) -> tuple[_State, Records]:
        """One step of those rows in (some of the) slots that act; the others stay as they are."""
        params = select_settings(self.params, slots.take)
        obs = self.mdp.observation(held, *seen)
        rows, happened = self.mdp.act(held, params, obs, step_keys, acting)
        records = state.records
        if records is not None:
            records = slots.note(records, held.rows.step, happened.active, happened)
        state = state._replace(rows=by_rows(slots.put(state.rows, rows)), records=records)
        if self.watch is not None:
            canvas, step_map = state.rows.canvas, state.rows.step_map
            io_callback(self.watch, None, canvas, step_map, ordered=True)
        done = state.slots.take(state.rows.block) >= self.mdp.num_blocks
        iteration = state.full_executed + state.cached_executed
        return state._replace(slots=state.slots.refill(done, iteration)), happened

    def _held(self, slots: Slots, state: _State) -> Held:
        """Everything of the rows in (some of the) slots."""
        return by_rows(Held(*slots.take((state.rows, self.prompts, self.keys))))

    def _sequence(self, held: Held) -> tuple[Int[Array, "S K"], Bool[Array, "S K"]]:
        """Tokens of prompt and canvas, and which of them are no padding."""
        canvas = held.rows.canvas
        tokens = jnp.concatenate([held.prompts.tokens, canvas], axis=1)
        return tokens, jnp.concatenate([held.prompts.mask, jnp.ones(canvas.shape, bool)], axis=1)

    def _look(self, held: Held, block: Int[Array, " S"]) -> _Window:
        """The window of each row, from the start of the given block."""
        tokens, real = self._sequence(held)
        positions = default_positions(real, self.length)
        first = block * self.mdp.settings.block_length - self.mdp.before(held)
        start = (self.prompt_length + first)[:, None]
        place = start + jnp.arange(self.window)
        at = jnp.minimum(place, self.length - 1)
        everywhere = jnp.arange(self.length)
        cached_mask = everywhere < start
        if not self.is_exact:
            cached_mask |= everywhere >= start + self.window
        return _Window(
            place=place,
            tokens=jnp.take_along_axis(tokens, at, axis=1),
            positions=jnp.take_along_axis(positions, at, axis=1),
            mask=(place < self.length) & jnp.take_along_axis(real, at, axis=1),
            cached_mask=cached_mask & real,
        )

    def _merge(
        self, seen: _Seen, new: _Seen, place: Int[Array, "S W"], acting: Bool[Array, " S"]
    ) -> _Seen:
        """What was seen, with what acting rows now see in their windows."""
        length = self.mdp.settings.gen_length
        is_known = acting[:, None] & (place >= self.prompt_length) & (place < self.length)
        if self.config.logits_shift:
            is_known = is_known.at[:, 0].set(False)
        at = jnp.where(is_known, place - self.prompt_length, length)  # Out of bounds: is dropped.
        write = jax.vmap(lambda old, new, at: old.at[at].set(new, mode="drop"))
        return jax.tree.map(lambda old, new: write(old, new, at), seen, new)

    def _observed(self, hidden: Array) -> Array | None:
        return hidden.astype(jnp.float32) if self.mdp.policy.needs.hidden else None

    @staticmethod
    def _put_all(put: transformer.Put, values: _Seen, new: _Seen) -> _Seen:
        return jax.tree.map(put, values, new)
