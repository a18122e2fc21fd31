"""Responses in training: their states, and the log-probabilities of their tokens there.

In order: responses and their traces; the denoiser's hidden states of a state (`canvas_hidden`); and
`StateBatch`, which scores the tokens of a batch in the states that a surrogate chooses
(`surrogates`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.adapters import with_adapters
from jax_unmask.denoisers.attention import Copies
from jax_unmask.denoisers.positions import default_positions
from jax_unmask.denoisers.transformer import output_table
from jax_unmask.learners.engine import ALONE, Chunk, Minibatches, Params, Shards, over_chunks, split
from jax_unmask.learners.losses import Normaliser, token_weights
from jax_unmask.learners.surrogates import Autoregressive, Canvas, States, Surrogate, Trace
from jax_unmask.learners.token_log_prob import token_log_prob
from jax_unmask.rollout.trajectory import Prompts
from jax_unmask.runtime import streams
from jax_unmask.runtime.mesh import by_rows, constrain
from jax_unmask.settings import Settings, setting


@struct.dataclass
class Responses:
    """Responses, and the order in which the denoiser wrote them.

    Token ids are those of the rollout itself; text is never tokenized again.

    Attributes:
        prompts: left-padded prompts.
        tokens: final canvases; the mask token stands where nothing was ever filled in.
        step_map: index of the row's own step that filled each position, -1 if none did.
    """

    prompts: Prompts
    tokens: Int[Array, "B L"]
    step_map: Int[Array, "B L"]


def trainable_tokens(
    tokens: Int[Array, "B L"],
    step_map: Int[Array, "B L"],
    pad_id: int,
    num_pads: int,
    end_ids: tuple[int, ...] = (),
) -> Bool[Array, "B L"]:
    """The tokens that a response is trained on: all that were filled in, but for most padding.

    The end of a canvas is padding (in many families the very token that ends the text). A model
    that is trained on all of it learns to stop early; one that is trained on none of it may never
    learn to stop (arXiv 2509.06949, appendix B.5).

    Args:
        tokens: canvases.
        step_map: see `Responses`.
        pad_id: the token that fills up a canvas.
        num_pads: how many padding tokens of each row are trained, its first ones (n_pad of the
            paper; 1 trains the end of a text where end and padding are one token). -1 for all.
        end_ids: tokens that end a text; tokens after the first of them are padding too, since no
            reward depends on it.
    """
    filled = step_map >= 0
    if num_pads < 0:
        return filled
    pads = tokens == pad_id
    if end_ids:
        ends = jnp.isin(tokens, jnp.asarray(end_ids, tokens.dtype))
        pads |= jnp.cumsum(ends, axis=-1) - ends > 0
    return filled & (~pads | (jnp.cumsum(pads, axis=-1) <= num_pads))


def merged_steps(
    step_map: Int[Array, "B L"], shrink: int, block_of: Int[Array, "#B L"] | None = None
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """Merges every `shrink` neighbouring steps of a trace: arXiv 2509.06949, section 4.1.

    Steps are counted as they occur: of the distinct steps of a row in ascending order, the first
    `shrink` make group 0, and so on, the last group possibly smaller. With blocks, the steps of
    each block are grouped by themselves, so that no group crosses a block.

    Args:
        step_map: step of each position, -1 where nothing was filled; such a position goes with the
            last step of its row or block.
        shrink: s, how many steps make one (static); 1 keeps the trace as it is.
        block_of: block of each position, rising along a row by at most 1 from one position to the
            next; None for one block.

    Returns:
        The group of each position, counted from 0 within its row or block; and the last step of
        that group, which orders the groups of all blocks in time.

    Raises:
        ValueError: `shrink` is below 1.
    """
    if shrink < 1:
        raise ValueError(f"shrink={shrink} must be at least 1")
    blocks = jnp.zeros((1, 1), jnp.int32) if block_of is None else block_of - block_of[:, :1]
    merge = functools.partial(_merged_steps_of_row, shrink=shrink)
    return jax.vmap(merge)(step_map, jnp.broadcast_to(blocks, step_map.shape))


def _merged_steps_of_row(
    step: Int[Array, " L"], block: Int[Array, " L"], *, shrink: int
) -> tuple[Int[Array, " L"], Int[Array, " L"]]:
    length = step.shape[0]
    last_of_block = jnp.zeros_like(step).at[block].max(step)
    step = jnp.where(step < 0, last_of_block[block], step)
    order = jnp.lexsort((step, block))
    ordered, block = step[order], block[order]
    new_block = jnp.diff(block, prepend=-1) != 0
    new_step = new_block | (jnp.diff(ordered, prepend=-1) != 0)
    rank = jnp.cumsum(new_step) - 1
    group = (rank - jax.lax.cummax(jnp.where(new_block, rank, 0))) // shrink
    # In this order a group ends with its last step; going back from the end of the row, the nearest
    # end of a group is the smallest pair (block, step) so far.
    ends = (jnp.diff(group, append=-1) != 0) | jnp.roll(new_block, -1)
    base = jnp.max(step) + 1
    pair = jnp.where(ends, block * base + ordered, jnp.iinfo(jnp.int32).max)
    last = jax.lax.cummin(pair, reverse=True) % jnp.maximum(base, 1)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(length))
    return group[place].astype(jnp.int32), last[place].astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class AttentionBlocks:
    """The blocks of a block-causal denoiser in training.

    Attributes:
        length: tokens per block; that of the rollout, or another one where a denoiser learns to
            work in longer blocks.
    """

    length: int

    def of_positions(
        self, positions: Int[Array, "B S"], prompt: Bool[Array, "B P"]
    ) -> Int[Array, "B S"]:
        """Block of each position of a text whose prompt has these real tokens.

        Blocks are counted from the start of the text, as every decoder does: the first one of a
        response begins with what the prompt leaves of one.
        """
        del prompt
        return positions // self.length

    def of_canvas(self, prompt: Bool[Array, "B P"], length: int) -> Int[Array, "B L"]:
        """Block of each canvas position, counted from that of the first one."""
        first = jnp.sum(prompt, axis=-1, keepdims=True, dtype=jnp.int32)
        blocks = self.of_positions(first + jnp.arange(length), prompt)
        return blocks - blocks[:, :1]


def in_blocks(denoiser: Any, blocks: AttentionBlocks | None) -> Any:
    """The denoiser as training in these blocks leaves it: what is saved names their length."""
    if blocks is None:
        return denoiser
    config = dataclasses.replace(denoiser.config, attention_block=blocks.length)
    return denoiser.clone(config=config)


def canvas_hidden(
    denoiser: Any,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "C L"],
    states: States,
    blocks: AttentionBlocks | None = None,
) -> Float[Array, "C L D"]:
    """Last hidden states of the canvas positions of C states.

    Args:
        denoiser: the dLLM.
        params: its parameters.
        prompts: prompt of each state.
        tokens: final canvas of the response that each state belongs to.
        states: which positions are masked.
        blocks: None for full attention. Otherwise the state of each block is that of a decoder that
            has finished the blocks before it and not begun those after it: all blocks in one
            forward over the text and a masked copy of its canvas.
    """
    mask_id, prompt = denoiser.config.mask_token_id, prompts.tokens
    if states.prompt_masked is not None:
        prompt = jnp.where(states.prompt_masked, mask_id, prompt)
    noisy = jnp.where(states.masked, mask_id, tokens)
    if blocks is not None:
        return _in_copies(denoiser, params, prompts, prompt, tokens, noisy, blocks)
    real = jnp.concatenate([prompts.mask, jnp.ones(tokens.shape, bool)], axis=1)
    rule: dict[str, Any] = {}
    if states.causal is not None:
        positions = default_positions(real, real.shape[1])
        # A block per response token, or one for all.
        is_response = jnp.arange(real.shape[1]) >= prompt.shape[1]
        block = jnp.where(states.causal[:, None] & is_response, 1 + positions, 0)
        copies = Copies(block=block, noisy=jnp.zeros_like(real), real=real)
        rule = {"positions": positions, "copies": copies}
    hidden = denoiser.apply(
        {"params": params},
        jnp.concatenate([prompt, noisy], axis=1),
        attention_mask=real,
        method="hidden",
        **rule,
    )
    return cast(Array, hidden)[:, prompt.shape[1] :]


def _in_copies(
    denoiser: Any,
    params: Params,
    prompts: Prompts,
    prompt: Int[Array, "C P"],
    tokens: Int[Array, "C L"],
    noisy: Int[Array, "C L"],
    blocks: AttentionBlocks,
) -> Float[Array, "C L D"]:
    """[prompt | response | end of the prompt | masked response] in one forward.

    The end of the prompt lies in the first block of the response, and attends to its masks there:
    in the text it would attend to the response instead, so it needs a masked copy, too.
    """
    length = prompt.shape[1]
    tail = min(blocks.length - 1, length)
    real = jnp.concatenate([prompts.mask, jnp.ones(tokens.shape, bool)], axis=1)
    positions = default_positions(real, real.shape[1])

    def with_copy(of_text: Array, of_copy: Array | None = None) -> Array:
        of_copy = of_text[:, length:] if of_copy is None else of_copy
        return jnp.concatenate([of_text, of_text[:, length - tail : length], of_copy], axis=1)

    places = with_copy(positions)
    copies = Copies(
        block=blocks.of_positions(places, prompts.mask),
        noisy=jnp.broadcast_to(jnp.arange(places.shape[1]) >= real.shape[1], places.shape),
        real=with_copy(real),
    )
    hidden = denoiser.apply(
        {"params": params},
        with_copy(jnp.concatenate([prompt, tokens], axis=1), noisy),
        positions=places,
        copies=copies,
        method="hidden",
    )
    return cast(Array, hidden)[:, -tokens.shape[1] :]


@dataclasses.dataclass(frozen=True)
class TokenSettings(Settings):
    """The tokens of a state that are trained, and how they are walked over."""

    normaliser: Normaliser = setting("step", "Weights of tokens, see losses.token_weights.")
    num_pads: int = setting(
        -1, "Padding tokens trained per response, its first ones; -1 for all.", ge=-1
    )
    chunk_size: int = setting(64, "States whose activations are alive at once.", ge=1)
    positions_per_chunk: int = setting(
        256, "Positions whose logits are alive at once; 0 for all.", ge=0
    )


@dataclasses.dataclass(frozen=True)
class StateSettings(TokenSettings):
    """Settings of the states of responses: their choice and scoring.

    Attributes:
        denoiser: the module to train.
        surrogate: the states that stand for a response.
        blocks: the blocks of a block-causal denoiser; None for full attention.
        end_ids: tokens that end a text; tokens after it count as padding.
        temperature: temperature of the log-probabilities.
    """

    _: dataclasses.KW_ONLY
    denoiser: Any
    surrogate: Surrogate = Trace()
    blocks: AttentionBlocks | None = None
    end_ids: tuple[int, ...] = ()
    temperature: float = 1.0

    def check(self) -> None:
        family, attention_block = self.denoiser.config.family, self.denoiser.config.attention_block
        if attention_block is None and self.blocks is not None:
            raise ValueError(
                f"blocks={self.blocks} are those of a block-causal denoiser, and this one of "
                f"family {family!r} attends to everything; give None"
            )
        causal = isinstance(self.surrogate, Autoregressive)
        if attention_block is not None and self.blocks is None and not causal:
            raise ValueError(
                f"the denoiser of family {family!r} is block-causal; give "
                "blocks=AttentionBlocks(length) with the block length of the rollout"
            )

    def num_states(self, length: int) -> int:
        """States of a response with a canvas of `length` positions."""
        return self.surrogate.num_states(
            length if self.blocks is None else min(self.blocks.length, length)
        )

    def log_prob(
        self, params: Params, hidden: Array, tokens: Array, wanted: Array
    ) -> Float[Array, "C S"]:
        """Log-probabilities of wanted tokens [C, S] by their hidden states, 0 elsewhere."""
        scores = token_log_prob(
            output_table(self.denoiser.config, params),
            hidden.reshape(-1, hidden.shape[-1]),
            tokens.reshape(-1),
            wanted.reshape(-1),
            self.positions_per_chunk,
            self.temperature,
        )
        return constrain(scores.reshape(tokens.shape), "batch")

    def describe(self, responses: Responses) -> Canvas:
        """Layout of a batch of responses, for the surrogate."""
        shrink = self.surrogate.shrink if isinstance(self.surrogate, Trace) else 1
        block_of = None
        if self.blocks is not None:
            block_of = self.blocks.of_canvas(responses.prompts.mask, responses.tokens.shape[1])
        group, time = merged_steps(responses.step_map, shrink, block_of)
        trainable = trainable_tokens(
            responses.tokens,
            responses.step_map,
            self.denoiser.config.pad_token_id,
            self.num_pads,
            self.end_ids,
        )
        return Canvas(
            trainable=trainable,
            group=group,
            time=time,
            block_of=jnp.zeros_like(group) if block_of is None else block_of,
            prompt=responses.prompts.mask,
        )


@dataclasses.dataclass(frozen=True)
class StateBatch:
    """One batch of B responses under one learner, inside a trace of `jax.jit`.

    The grid of the engine's cells has a row of N states for each response: [N, B].

    Attributes:
        settings: which states there are.
        responses: the responses.
        canvas: their layout, see `StateSettings.describe`.
        kept: the responses that count.
        key: typed PRNG key of the training step.
        base: the frozen parameters below adapters, where only these are trained.
        shards: the copies of the model, which take their shares of every minibatch.
    """

    settings: StateSettings
    responses: Responses
    canvas: Canvas
    kept: Bool[Array, " B"]
    key: Array
    base: Params | None = None
    shards: Shards = ALONE

    def whole(self, params: Params) -> Params:
        """All parameters of a denoiser, from those that are trained."""
        return params if self.base is None else with_adapters(self.base, params)

    def states(self, index: Array | int, at: Chunk) -> States:
        """The states of a chunk in a pass; those of cells that do not count train nothing."""
        key = streams.stream(self.key, "states", index)
        states = by_rows(self.settings.surrogate.states(self.canvas, key, at.step, at.row))
        return dataclasses.replace(states, trained=states.trained & at.valid[:, None])

    def wanted(self, index: Array | int) -> Bool[Array, "N B"]:
        """The states that train something in a pass."""
        batch, length = self.responses.tokens.shape
        rows, key = jnp.arange(batch), streams.stream(self.key, "states", index)

        def of_index(state: Array) -> Bool[Array, " B"]:
            numbers = jnp.full(batch, state)
            states = self.settings.surrogate.states(self.canvas, key, numbers, rows)
            return states.trained.any(axis=-1) & self.kept

        # One state index at a time: [N, B, L] would be the largest array of an update.
        return jax.lax.map(of_index, jnp.arange(self.settings.num_states(length)))

    def minibatches(self, index: Array | int, number: int = 1) -> Minibatches:
        """The states of each optimiser step of a pass."""
        return split(
            self.wanted(index),
            number,
            streams.stream(self.key, "minibatches", index),
            whole_rows=self.settings.surrogate.unit == "sequence",
            shards=self.shards,
        )

    def take(self, at: Chunk) -> tuple[Prompts, Array]:
        """Prompts and tokens of a chunk."""
        of_rows = by_rows(jax.tree.map(lambda leaf: leaf[at.row], self.responses))
        return of_rows.prompts, of_rows.tokens

    def score(self, params: Params, at: Chunk, states: States) -> Float[Array, "C L"]:
        """Log-probabilities of the trained tokens of a chunk, 0 elsewhere."""
        settings, (prompts, tokens) = self.settings, self.take(at)
        params = self.whole(params)
        hidden = canvas_hidden(settings.denoiser, params, prompts, tokens, states, settings.blocks)
        return settings.log_prob(params, hidden, tokens, states.trained)

    def weights(self, states: States) -> Float[Array, "C L"]:
        """Weight of each token in the loss of its state."""
        return token_weights(states.trained, self.settings.normaliser)

    def log_probs(self, params: Params, index: Array | int) -> Float[Array, "slots B L"]:
        """Log-probabilities of all tokens that a pass trains, 0 elsewhere."""

        def scores(at: Chunk) -> tuple[Array, Array, Array]:
            states = self.states(index, at)
            slot = self.settings.surrogate.slot(at.step)
            return self.score(params, at, states), slot, states.trained

        return self.collect(scores, index, self.settings.surrogate.num_slots)

    def collect(
        self,
        scores: Callable[[Chunk], tuple[Array, Array, Array]],
        index: Array | int,
        slots: int = 1,
    ) -> Float[Array, "slots B L"]:
        """Collects numbers of tokens from all states of a pass.

        The result lies in shards of rows over the devices of a copy.

        Args:
            scores: chunk to its numbers [C, L], the slot of each cell [C], and the tokens whose
                numbers count [C, L]; cells of one slot concern different tokens.
            index: the pass.
            slots: number of slots.
        """

        def body(out: Array, at: Chunk) -> Array:
            values, slot, counts = scores(at)
            # Whole on every device, each of which takes what belongs to its own rows.
            values = constrain(jnp.where(counts & at.valid[:, None], values, 0.0))
            return constrain(out.at[slot, at.row].add(values), None, "batch")

        zeros = jnp.zeros((slots, *self.responses.tokens.shape), jnp.float32)
        cells = split(self.wanted(index), shards=self.shards)
        out = over_chunks(
            body,
            constrain(zeros, None, "batch"),
            cells,
            cells.first,
            self.settings.chunk_size,
            self.shards,
        )
        return self.shards.sum(out)
