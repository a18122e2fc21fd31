"""The denoiser's forwards in a rollout: over whole sequences, without a cache.

Each forward serves the slots that it is for; the others stay as they are, so what a row gets does
not depend on when it is served. Those with a cache are in `cached_forwards`.

Rows of a prompt (`RolloutSettings.prompt_rows`) share their first forward.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_unmask.denoisers.attention import fuses
from jax_unmask.denoisers.cache import KeyValueCache, Written
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.head import Scores, probability_of, score_candidates, score_targets
from jax_unmask.denoisers.positions import default_positions, window_of
from jax_unmask.denoisers.transformer import Denoiser, Params, forward, rotations
from jax_unmask.policies.base import Policy
from jax_unmask.rollout.rows import Blocks, Rows, RunningBatch
from jax_unmask.rollout.slots import ALL_SLOTS, Slots, SlotSubset
from jax_unmask.rollout.trajectory import Forwards, Prompts, Records, RolloutSettings
from jax_unmask.runtime import accelerators
from jax_unmask.runtime.mesh import by_rows, constrain

Tree = TypeVar("Tree")


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

    def __init__(
        self,
        denoiser: Denoiser,
        params: Params,
        policy: Policy,
        settings: RolloutSettings,
        prompts: Prompts,
        keys: Array,
    ) -> None:
        self.arguments = (denoiser, params, policy, settings, prompts, keys)
        self.denoiser, self.params = for_rollouts(denoiser, settings.block_length), params
        self.config, self.needs = self.denoiser.config, policy.needs
        self.settings, self.prompts, self.keys = settings, prompts, keys
        self.blocks = Blocks(settings, from_text=self.config.attention_block is not None)
        self.scored = scored_positions(policy, settings)
        self.rows, self.prompt_length = prompts.tokens.shape
        self.canvas_length = settings.gen_length
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
        """Whether each kind of forward is next; all False once every row is done."""
        return [(state.rows.block < self.blocks.number).any()]

    def run(self, kind: int, state: LoopState, cache: KeyValueCache | None) -> Computed:
        """One forward of a kind."""
        del kind, cache
        settings, batch = self.settings, self.batch_in(state.slots, state.rows)
        start, width, targets = None, self.scored, batch.prompts.targets
        canvas = batch.rows.canvas
        if width < self.canvas_length:
            start = self.blocks.window_start(batch, width)
            canvas, targets = jax.tree.map(lambda x: window_of(x, width, start), (canvas, targets))
        hidden = self._hidden(batch, width, start)
        if settings.guidance > 0:
            # The head is linear, so logits are guided by guiding the states that it projects.
            nothing = jnp.full_like(batch.prompts.tokens, self.config.mask_token_id)
            prompts = dataclasses.replace(batch.prompts, tokens=nothing)
            unguided = self._hidden(batch._replace(prompts=prompts), width, start)
            hidden = unguided + (settings.guidance + 1.0) * (hidden - unguided)
        step_keys = self.step_keys(batch)
        readout = self.read_out(hidden, step_keys[:, 0], canvas, targets)
        if start is not None:
            place = functools.partial(in_canvas, start=start, length=self.canvas_length)
            readout = readout._replace(scores=jax.tree.map(place, readout.scores))
        return Computed(None, None, ALL_SLOTS, batch, readout, step_keys[:, 1], acting=None)

    def by_kind(self, state: LoopState) -> Forwards | None:
        """The forwards by kind; None without a cache."""
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
        if self.canvas_first and "last" in options and options.get("start") is None:
            options["start"] = jnp.zeros(len(tokens), jnp.int32)
        options |= {"table": table, "padded_last": self.canvas_first}
        return forward(self.config, self.params, tokens, real, positions, **options)

    def read_out(
        self,
        hidden: Float[Array, "S W D"],
        keys: Array,
        canvas: Int[Array, "S W"],
        targets: Int[Array, "S W"] | None = None,
    ) -> Readout:
        """The policy's inputs at some positions.

        Args:
            hidden: the denoiser's last hidden states there.
            keys: of its draws, one per row.
            canvas: the tokens there.
            targets: the candidates, if they are given.
        """
        scores = score_candidates(
            self.denoiser,
            self.params,
            hidden,
            keys,
            top_k=self.needs.top_k,
            entropy=self.needs.entropy,
            temperature=self.settings.temperature,
            vocab_chunk=self.settings.vocab_chunk,
            sampling=self.settings.sampling,
        )
        known = (self.denoiser, self.params, hidden, scores)
        if self.needs.filled:
            scores = dataclasses.replace(scores, of_tokens=probability_of(*known, canvas))
        if targets is not None:
            scores = score_targets(*known[:3], scores, targets)
        return Readout(scores, hidden if self.needs.hidden else None)

    def step_keys(self, batch: RunningBatch) -> Array:
        """Keys of each row's draws at this step, the denoiser's and the policy's: [S, 2]"""
        keys = jax.vmap(jax.random.fold_in)(batch.keys, batch.rows.step)
        return jax.vmap(functools.partial(jax.random.split, num=2))(keys)

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
        one, start = self._of_prompts((batch, start))
        return self._of_rows(super()._hidden(one, width, start))

    def read_out(
        self,
        hidden: Float[Array, "S W D"],
        keys: Array,
        canvas: Int[Array, "S W"],
        targets: Int[Array, "S W"] | None = None,
    ) -> Readout:
        known = (hidden, keys, canvas, targets)
        if self.settings.temperature > 0 or targets is not None:
            return super().read_out(*known)
        return self._of_rows(super().read_out(*self._of_prompts(known)))

    def _of_prompts(self, rows: Tree) -> Tree:
        """Arrays with the first row of each prompt."""
        each = self.settings.prompt_rows
        return by_rows(jax.tree.map(lambda x: x.reshape(-1, each, *x.shape[1:])[:, 0], rows))

    def _of_rows(self, prompts: Tree) -> Tree:
        """Arrays in which all rows of a prompt have its values."""
        each = self.settings.prompt_rows
        return by_rows(jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), prompts))


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
