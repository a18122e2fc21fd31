"""One compiled program per rollout: denoiser, policy and canvas in one scan over forwards.

Everything that fills a canvas of masks goes through `rollout`: training, evaluation and generation;
heuristics and learned policies; with and without a cache. It stands at the end of this file, after
what it is made of: the MDP (where rows stand, what a policy observes, what its action does to a
canvas: `Mdp.act`) and the forwards of the denoiser (`PlainForwards`, `CachedForwards`).

Jazbec et al. (arXiv 2512.09106, section 3): the state is the canvas, an action is a set of
positions to fill, the frozen denoiser is the environment. Rows are independent. Each row has its
own block, step count and random stream, so its result depends neither on the other rows nor on when
they finish, nor on its slot (see `slots`).

Without a cache every forward computes the whole sequences of all slots. With one there are two
kinds. A full forward computes the whole sequences of a few slots and stores their keys and values.
A window forward computes a few positions of every slot, which attend to the stored ones. Rows are
at different places of their blocks, so some need a full forward while others can go on with a
window. Each forward serves the slots that it is for; the others stay as they are, so what a row
gets does not depend on when it is served. Little is wasted: full forwards wait until enough slots
need one (`Cache.refresh_rows`) or no slot can do anything else.

Rows of a prompt (`RolloutSettings.prompt_rows`) share what is the same for all of them: their first
forward, or with cache "block" the prompt's keys and values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_unmask.denoisers.attention import fuses
from jax_unmask.denoisers.cache import KeyValueCache, Written, empty_cache, write_positions
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.head import (
    Scores,
    probability_of,
    score_candidates,
    score_targets,
)
from jax_unmask.denoisers.positions import default_positions, window_of
from jax_unmask.denoisers.transformer import Denoiser, Params, forward, rotations
from jax_unmask.policies.base import Filled, Observation, Policy, select_settings
from jax_unmask.rollout.slots import ALL_SLOTS, Slots, SlotStep, SlotSubset
from jax_unmask.rollout.trajectory import (
    Forwards,
    Prompts,
    Records,
    RolloutSettings,
    Trajectory,
    Watcher,
)
from jax_unmask.runtime import accelerators
from jax_unmask.runtime.mesh import by_rows, constrain


class Rows(NamedTuple):
    """State of the rows; L canvas positions."""

    canvas: Int[Array, "B L"]
    step_map: Int[Array, "B L"]
    confidence: Array
    step: Int[Array, " B"]
    block: Int[Array, " B"]
    step_in_block: Int[Array, " B"]
    post_steps: Int[Array, " B"]


class RunningBatch(NamedTuple):
    """The rows in the slots.

    Attributes:
        rows: where they stand.
        prompts: their prompts.
        keys: their random streams.
        positions: of prompt and canvas in the text, see `positions.default_positions`.
    """

    rows: Rows
    prompts: Prompts
    keys: Array
    positions: Int[Array, "S K"]


@dataclasses.dataclass(frozen=True)
class Mdp:
    """The steps of a rollout, but for the denoiser's forward.

    Attributes:
        denoiser: the dLLM, see `for_rollouts`.
        denoiser_params: its parameters.
        policy: chooses the positions to fill.
        settings: shape of the rollout.
    """

    denoiser: Denoiser
    denoiser_params: Params
    policy: Policy
    settings: RolloutSettings

    @property
    def is_block_causal(self) -> bool:
        """Blocks are counted from the start of the text."""
        return self.denoiser.config.attention_block is not None

    @property
    def scored(self) -> int:
        """Canvas positions that a forward without a cache scores, see `scored_positions`."""
        return scored_positions(self.policy, self.settings)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of a canvas; a row in this block is done."""
        # Blocks that are counted from the start of the text may be cut at both ends of the canvas.
        return self.settings.gen_length // self.settings.block_length + self.is_block_causal

    @property
    def most_steps(self) -> int:
        """T, the most steps that a row can take."""
        return self.num_blocks * (self.settings.block_length + self.most_post_steps)

    @property
    def most_post_steps(self) -> int:
        """Steps on a block without masks at most: 0 where tokens are final."""
        return self.policy.needs.post_steps or 0

    @property
    def mask_id(self) -> int:
        """The mask token."""
        return self.denoiser.config.mask_token_id

    def first_rows(self, batch: int, present: Bool[Array, " B"] | None) -> Rows:
        """All-mask canvases; every counter at zero. Absent rows are done already."""
        count, length = jnp.zeros(batch, jnp.int32), self.settings.gen_length
        first = count
        if present is not None:
            first = jnp.where(present, 0, self.num_blocks).astype(jnp.int32)
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

    def taken_by_prompt(self, batch: RunningBatch) -> Int[Array, " S"]:
        """Positions of a row's first block that its prompt has taken."""
        if not self.is_block_causal:
            return jnp.zeros(batch.rows.block.shape, jnp.int32)
        length = batch.prompts.mask.sum(axis=-1, dtype=jnp.int32)
        return length % self.settings.block_length

    def block_of(self, batch: RunningBatch) -> Int[Array, "S L"]:
        """The block of each canvas position."""
        positions = jnp.arange(self.settings.gen_length)
        return (self.taken_by_prompt(batch)[:, None] + positions) // self.settings.block_length

    def block_start(self, batch: RunningBatch) -> Int[Array, " S"]:
        """First canvas position of the current block."""
        start = batch.rows.block * self.settings.block_length - self.taken_by_prompt(batch)
        return jnp.maximum(start, 0)

    def window_start(self, batch: RunningBatch) -> Int[Array, " S"]:
        """First of `scored` canvas positions that hold the current block.

        Blocks may be cut at both ends of the canvas; a window of their width is not.
        """
        return jnp.minimum(self.block_start(batch), self.settings.gen_length - self.scored)

    def step_keys(self, batch: RunningBatch) -> Array:
        """For each row a key of the denoiser's draw at this step and one of the policy's: [S, 2]"""
        keys = jax.vmap(jax.random.fold_in)(batch.keys, batch.rows.step)
        return jax.vmap(functools.partial(jax.random.split, num=2))(keys)

    def score(
        self,
        hidden: Float[Array, "S W D"],
        keys: Array,
        canvas: Int[Array, "S W"],
        targets: Int[Array, "S W"] | None = None,
    ) -> Scores:
        """Scores of the denoiser for the policy, at the positions of the hidden states.

        Args:
            hidden: the denoiser's last hidden states.
            keys: of its draws, one per row.
            canvas: the tokens at these positions.
            targets: the candidates, if they are given.
        """
        scores = score_candidates(
            self.denoiser,
            self.denoiser_params,
            hidden,
            keys,
            top_k=self.policy.needs.top_k,
            entropy=self.policy.needs.entropy,
            temperature=self.settings.temperature,
            vocab_chunk=self.settings.vocab_chunk,
            sampling=self.settings.sampling,
        )
        known = (self.denoiser, self.denoiser_params, hidden, scores)
        if self.policy.needs.filled:
            scores = dataclasses.replace(scores, of_tokens=probability_of(*known, canvas))
        return scores if targets is None else score_targets(*known[:3], scores, targets)

    def observation(
        self, batch: RunningBatch, scores: Scores, hidden: Float[Array, "S W D"] | None
    ) -> Observation:
        """The observation of the policy before a step.

        Args:
            batch: the rows.
            scores: of the whole canvas.
            hidden: states of the whole canvas, or of the current block, or None.
        """
        rows, settings = batch.rows, self.settings
        in_block = self.block_of(batch) == rows.block[:, None]
        masked = rows.canvas == self.mask_id
        start = self.block_start(batch)
        if hidden is not None and hidden.shape[1] != self.scored:
            hidden = window_of(hidden, self.scored, self.window_start(batch))
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
            block_length=settings.block_length,
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
        rows = batch.rows
        if acting is not None:
            obs = dataclasses.replace(obs, legal=obs.legal & acting[:, None])
        action = self.policy(params, obs, keys)
        in_block = self.block_of(batch) == rows.block[:, None]

        has_masks = obs.legal.any(axis=-1)
        active = has_masks
        if self.most_post_steps:
            active = rows.block < self.num_blocks
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
        block_length = self.settings.block_length
        if action.take_back is not None:
            back = action.take_back & in_block & ~obs.masked & active[:, None]
            masks = back | ((canvas == self.mask_id) & in_block)
            back &= (masks.sum(axis=-1) <= block_length - used)[:, None]
            canvas = jnp.where(back, self.mask_id, canvas)
            step_map, confidence = jnp.where(back, -1, step_map), jnp.where(back, 0.0, confidence)
        post_steps = rows.post_steps + (active & ~has_masks)
        unfinished = ((canvas == self.mask_id) & in_block).any(axis=-1)
        edits_on = (post_steps < self.most_post_steps) & (has_masks | changes)
        next_block = active & jnp.where(unfinished, used >= block_length, ~edits_on)
        is_last = rows.block == self.block_of(batch)[:, -1]
        if self.settings.stop_ids:
            stops = jnp.isin(canvas, jnp.asarray(self.settings.stop_ids, jnp.int32))
            is_last |= stops.any(axis=-1)
        new = Rows(
            canvas=canvas,
            step_map=step_map,
            confidence=confidence,
            step=rows.step + active,
            block=jnp.where(next_block & is_last, self.num_blocks, rows.block + next_block),
            step_in_block=jnp.where(next_block, 0, used),
            post_steps=jnp.where(next_block, 0, post_steps),
        )
        return new, Records(obs, action, active)


def scored_positions(policy: Policy, settings: RolloutSettings) -> int:
    """Number of canvas positions that a forward without a cache scores: all or a block."""
    return settings.gen_length if policy.needs.canvas else settings.block_length


def for_rollouts(denoiser: Denoiser, block_length: int) -> Denoiser:
    """The denoiser with the device's best attention, and with the attention blocks of the rollout.

    Nothing is differentiated through a rollout, so it may use kernels that training does not.
    """
    config = denoiser.config
    if config.attention_block is not None:
        config = dataclasses.replace(config, attention_block=block_length)
    if fuses(config.dtype, config.head_dim):
        config = dataclasses.replace(config, fused_attention=True)
    return denoiser if config is denoiser.config else denoiser.clone(config=config)


def padding_is_last(config: DenoiserConfig) -> bool:
    """Whether forwards have the padding of prompts after all other tokens.

    cuDNN then gets their number, and no bias [B, 1, S, S]. It takes full attention, and a head that
    scores its own position.
    """
    is_free = config.attention_block is None and not config.logits_shift
    return config.fused_attention and is_free and accelerators.platform() == "gpu"


class Readout(NamedTuple):
    """Scores of each canvas position, from the last forward that computed it, for the policy.

    Attributes:
        scores: candidates, confidences and more; 0 before the first forward.
        hidden: last hidden states in the denoiser's compute type, if the policy reads them: of the
            canvas, or of the current block alone.
    """

    scores: Scores
    hidden: Float[Array, "S W D"] | None


class Counts(NamedTuple):
    """Counts of each row's forwards by kind, with a cache.

    Attributes:
        written: with cache "block": the first of its blocks that the cache does not hold; -1 before
            it holds the prompt.
        full: full forwards so far.
        window: window forwards so far.
    """

    written: Int[Array, " B"]
    full: Int[Array, " B"]
    window: Int[Array, " B"]


class Memory(NamedTuple):
    """State between forwards, beside keys and values.

    Attributes:
        readout: of the slots.
        counts: of the rows.
        held: the prompt whose keys and values a slot has, counted within its group; -1 for none.
            None where no rows share them.
    """

    readout: Readout
    counts: Counts
    held: Int[Array, " S"] | None


class LoopState(NamedTuple):
    """The state of a rollout between two forwards.

    Attributes:
        rows: where all B rows stand.
        slots: which of them are served.
        memory: see `Memory`; None without a cache.
        executed: forwards so far, by kind.
    """

    rows: Rows
    slots: Slots
    memory: Memory | None
    executed: Int[Array, " kinds"]


Carry = tuple[LoopState, KeyValueCache | None, Records | None]
"""State of a rollout, cache of keys and values, records so far."""


class Computed(NamedTuple):
    """Result of a forward, for the policy.

    Attributes:
        memory: the memory after it.
        cache: keys and values: a full forward returns the whole cache; a window forward what is to
            be written into it, or None.
        served: the slots that it computed.
        batch: the rows in them.
        readout: of their canvases.
        policy_keys: for the policy's draws.
        acting: rows that take a step with it; None for all.
    """

    memory: Memory | None
    cache: KeyValueCache | Written | None
    served: SlotSubset
    batch: RunningBatch
    readout: Readout
    policy_keys: Array
    acting: Bool[Array, " F"] | None


class PlainForwards:
    """Forwards without a cache, all of one kind: over the whole sequences of all slots.

    Where the policy reads the current block only, so does the head: the last layer and the
    projection to the vocabulary are computed for that block alone.
    """

    kinds = 1

    def __init__(self, mdp: Mdp, prompts: Prompts, keys: Array) -> None:
        self.mdp, self.prompts, self.keys = mdp, prompts, keys
        self.config = mdp.denoiser.config
        self.rows, self.prompt_length = prompts.tokens.shape
        self.canvas_length = mdp.settings.gen_length
        self.length = self.prompt_length + self.canvas_length
        # With full attention the order of tokens does not matter. Where the canvas is first and the
        # prompt after it, backwards, its padding is last, as cuDNN wants it.
        self.canvas_first = padding_is_last(self.config)
        self.canvas_start = 0 if self.canvas_first else self.prompt_length
        self.canvas_end = self.canvas_start + self.canvas_length
        # Outside of the loop: what a branch of `cond` computes, it computes at every step.
        canvas = jnp.ones((self.rows, self.canvas_length), bool)
        text = default_positions(jnp.concatenate([prompts.mask, canvas], axis=1), self.length)
        self.positions = self._joined(*jnp.split(text, [self.prompt_length], axis=1))
        table = rotations(self.config, jnp.arange(self.length))
        # A TPU's compiler would sink the table into the loops and then stumble over its own work.
        self.rotations = jax.lax.optimization_barrier(table)

    def first_memory(self, slots: Slots) -> Memory | None:
        """The memory before the first forward."""
        del slots
        return None

    def first_cache(self, slots: Slots) -> KeyValueCache | None:
        """The cache before the first forward."""
        del slots
        return None

    def due(self, state: LoopState) -> list[Bool[Array, ""]]:
        """For each kind of forward, whether it is next; all False once every row is done."""
        return [(state.rows.block < self.mdp.num_blocks).any()]

    def run(self, kind: int, state: LoopState, cache: KeyValueCache | None) -> Computed:
        """One forward of a kind."""
        del kind, cache
        mdp, settings, slots = self.mdp, self.mdp.settings, state.slots
        batch = self.batch_in(slots, state.rows)
        start, width, targets = None, mdp.scored, batch.prompts.targets
        canvas = batch.rows.canvas
        if width < self.canvas_length:
            start = mdp.window_start(batch)
            canvas, targets = jax.tree.map(lambda x: window_of(x, width, start), (canvas, targets))
        hidden = self._hidden(batch, width, start)
        if settings.guidance > 0:
            # The head is linear, so logits are guided by guiding the states that it projects.
            nothing = jnp.full_like(batch.prompts.tokens, mdp.mask_id)
            prompts = dataclasses.replace(batch.prompts, tokens=nothing)
            unguided = self._hidden(batch._replace(prompts=prompts), width, start)
            hidden = unguided + (settings.guidance + 1.0) * (hidden - unguided)
        step_keys = mdp.step_keys(batch)
        readout = self.read_out(hidden, step_keys[:, 0], canvas, targets)
        if start is not None:
            place = functools.partial(in_canvas, start=start, length=self.canvas_length)
            readout = readout._replace(scores=jax.tree.map(place, readout.scores))
        return Computed(None, None, ALL_SLOTS, batch, readout, step_keys[:, 1], acting=None)

    def by_kind(self, state: LoopState) -> Forwards | None:
        """With a cache, the forwards by kind."""
        del state
        return None

    def batch_in(self, slots: Slots, rows: Rows) -> RunningBatch:
        """The rows in the slots."""
        return by_rows(RunningBatch(*slots.take((rows, self.prompts, self.keys, self.positions))))

    def sequence(self, batch: RunningBatch) -> tuple[Int[Array, "S K"], Bool[Array, "S K"]]:
        """Tokens of prompt and canvas, and which of them are no padding."""
        real = jnp.ones(batch.rows.canvas.shape, bool)
        tokens = self._joined(batch.prompts.tokens, batch.rows.canvas)
        return tokens, self._joined(batch.prompts.mask, real)

    def _joined(
        self, prompt: Shaped[Array, "S P"], canvas: Shaped[Array, "S L"]
    ) -> Shaped[Array, "S K"]:
        """Values of prompt and canvas in the order of a forward."""
        parts = [canvas, prompt[:, ::-1]] if self.canvas_first else [prompt, canvas]
        return jnp.concatenate(parts, axis=1)

    def _forward(
        self,
        tokens: Int[Array, "F S"],
        real: Bool[Array, "F S"],
        positions: Int[Array, "F S"],
        **options: Any,
    ) -> tuple[Float[Array, "F W D"], Any]:
        """Last hidden states, and the cache if there is one; see `transformer.forward`."""
        table = (self.rotations[0][positions], self.rotations[1][positions])
        params = self.mdp.denoiser_params
        if self.canvas_first and "last" in options and options.get("start") is None:
            options["start"] = jnp.zeros(len(tokens), jnp.int32)
        options |= {"table": table, "padded_last": self.canvas_first}
        return forward(self.config, params, tokens, real, positions, **options)

    def read_out(
        self,
        hidden: Float[Array, "S W D"],
        keys: Array,
        canvas: Int[Array, "S W"],
        targets: Int[Array, "S W"] | None = None,
    ) -> Readout:
        """The policy's inputs at the positions of the given hidden states; see `Mdp.score`."""
        scores = self.mdp.score(hidden, keys, canvas, targets)
        return Readout(scores, hidden if self.mdp.policy.needs.hidden else None)

    def _hidden(
        self, batch: RunningBatch, width: int, start: Int[Array, " S"] | None
    ) -> Float[Array, "S W D"]:
        """Last hidden states of W canvas positions, from `start` (None: the last ones)."""
        tokens, real = self.sequence(batch)
        start = None if start is None else start + self.canvas_start
        hidden, _ = self._forward(tokens, real, batch.positions, last=width, start=start)
        return constrain(hidden, "batch")


class SharedForwards(PlainForwards):
    """First forwards, of canvases of masks: one for all rows of a prompt, next to each other."""

    def _hidden(
        self, batch: RunningBatch, width: int, start: Int[Array, " S"] | None
    ) -> Float[Array, "S W D"]:
        each = self.mdp.settings.prompt_rows

        def first_of_prompt(x: Array) -> Array:
            return x.reshape(-1, each, *x.shape[1:])[:, 0]

        one = by_rows(jax.tree.map(first_of_prompt, (batch, start)))
        return constrain(jnp.repeat(super()._hidden(one[0], width, one[1]), each, axis=0), "batch")


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

    def __init__(self, mdp: Mdp, prompts: Prompts, keys: Array) -> None:
        super().__init__(mdp, prompts, keys)
        cache, settings = mdp.settings.cache, mdp.settings
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
        needs = self.mdp.policy.needs
        count, none_yet = slots.row.size, jnp.zeros(self.rows, jnp.int32)
        canvas = (count, self.canvas_length)
        scores = Scores(
            candidate=jnp.zeros(canvas, jnp.int32),
            confidence=jnp.zeros(canvas),
            top_probs=jnp.zeros((*canvas, needs.top_k)),
            entropy=jnp.zeros(canvas) if needs.entropy else None,
            of_tokens=jnp.zeros(canvas) if needs.filled else None,
        )
        states = (*canvas, self.config.hidden_size)
        hidden = jnp.zeros(states, self.config.dtype) if needs.hidden else None
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
            full_rows=self.per_group * self.mdp.settings.slot_groups,
            full_tokens=self.prompt_length if self.is_exact else self.length,
            cached_tokens=self.window,
            length=self.length,
        )

    def _phases(self, state: LoopState) -> tuple[Bool[Array, " S"], Bool[Array, " S"]]:
        """Slots whose row needs a full forward, and those whose row can go on with a window."""
        assert state.memory is not None
        rows, counts = by_rows(state.slots.take((state.rows, state.memory.counts)))
        unfinished = rows.block < self.mdp.num_blocks
        if self.is_exact:
            needs = counts.written < 0
        elif self.refresh_every:
            needs = rows.step_in_block % self.refresh_every == 0
        else:
            needs = rows.step_in_block == 0
        return unfinished & needs, unfinished & ~needs

    def _first_of_prompts(self, state: LoopState, needs: Bool[Array, " S"]) -> Bool[Array, " S"]:
        """Of the slots that need a full forward, one for each prompt that no slot holds."""
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
        prompt = state.slots.row // self.mdp.settings.prompt_rows
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
            prompt = slots.row.reshape(-1) // self.mdp.settings.prompt_rows
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
            needed = is_served & (real.sum(axis=-1) >= self.mdp.settings.block_length)
        else:
            tokens, real = self.sequence(batch)
            last, needed = self.canvas_length, is_served
        positions = batch.positions[:, : tokens.shape[1]]
        fill = functools.partial(chosen.put_in_layer, is_put=is_served)
        hidden, filled = self._forward(tokens, real, positions, last=last, cache=cache, put=fill)
        # 3. What the policy reads: of the whole canvas, or (with "block") nothing yet.
        step_keys = self.mdp.step_keys(batch)
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
        first = block * self.mdp.settings.block_length - self.mdp.taken_by_prompt(batch)
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
        step_keys = self.mdp.step_keys(batch)
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


def in_canvas(
    values: Shaped[Array, "S W ..."], start: Int[Array, " S"], length: int
) -> Shaped[Array, "S L ..."]:
    """Canvases [S, L, ...] that hold the values of a window of each; 0 elsewhere.

    Args:
        values: of the positions of the windows.
        start: first position of each window, at most L - W.
        length: L.
    """
    whole = jnp.zeros((values.shape[0], length, *values.shape[2:]), values.dtype)
    place = jax.vmap(lambda row, x, at: jax.lax.dynamic_update_slice_in_dim(row, x, at, 0))
    return place(whole, values, start)


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
    ) -> Loop:
        """The loop of a rollout; arguments as of `rollout`."""
        mdp = Mdp(for_rollouts(denoiser, settings.block_length), denoiser_params, policy, settings)
        kinds = PlainForwards if settings.cache is None else CachedForwards
        return cls(mdp, policy_params, kinds(mdp, prompts, keys), watch)

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
        """Rows that get no further forward."""
        return rows.block >= self.mdp.num_blocks

    def is_unfinished(self, state: LoopState) -> Bool[Array, ""]:
        """Whether any row is not done."""
        return (state.rows.block < self.mdp.num_blocks).any()

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
        return state, done.cache, step if mdp.settings.record else None

    def share_first(
        self, state: LoopState, records: Records | None
    ) -> tuple[LoopState, Records | None]:
        """The first step of all rows, before they get slots: a forward serves all of a prompt."""
        slots, forwards = state.slots, self.forwards
        groups, each = slots.row.shape
        # Not many more rows at one time than have slots, because of the head.
        rows = math.lcm(each, self.mdp.settings.prompt_rows)
        rows = rows if slots.size % rows == 0 else slots.size
        shared = SharedForwards(self.mdp, forwards.prompts, forwards.keys)
        loop = dataclasses.replace(self, forwards=shared)

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
    if settings.shares_first and assignment.size % settings.prompt_rows == 0:
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
