"""One batch of responses: its states, which of them are trained, and the scores of their tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_unmask.denoisers.adapters import with_adapters
from jax_unmask.denoisers.transformer import output_table
from jax_unmask.learners.engine import ALONE, Chunk, Minibatches, Shards, over_chunks, split
from jax_unmask.learners.losses import Normaliser, token_weights
from jax_unmask.learners.state import Params
from jax_unmask.learners.states.forward import AttentionBlocks, canvas_hidden
from jax_unmask.learners.states.responses import Responses, merged_steps, trainable_tokens
from jax_unmask.learners.states.surrogates import Autoregressive, Canvas, States, Surrogate, Trace
from jax_unmask.learners.states.token_log_prob import token_log_prob
from jax_unmask.rollout.trajectory import Prompts
from jax_unmask.runtime import streams
from jax_unmask.runtime.mesh import by_rows, constrain
from jax_unmask.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class TokenSettings(Settings):
    """The tokens of a state that are trained, and how they are walked over."""

    normaliser: Normaliser = setting("step", "Weights of tokens, see losses.token_weights.")
    num_pads: int = setting(
        -1, "Padding tokens trained per response, its first ones; -1 for all.", ge=-1
    )
    chunk_size: int = setting(64, "States whose activations are alive at once.", ge=1)
    positions_per_chunk: int = setting(256, "Positions whose logits are alive at once.", ge=1)


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
        canvas: their layout, for the surrogate.
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

    @classmethod
    def of(
        cls,
        settings: StateSettings,
        responses: Responses,
        kept: Array,
        key: Array,
        base: Params | None = None,
        shards: Shards = ALONE,
    ) -> StateBatch:
        """The batch of these responses."""
        return cls(settings, responses, settings.describe(responses), kept, key, base, shards)

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
        scores = token_log_prob(
            output_table(settings.denoiser.config, params),
            hidden.reshape(-1, hidden.shape[-1]),
            tokens.reshape(-1),
            states.trained.reshape(-1),
            settings.positions_per_chunk,
            settings.temperature,
        )
        return constrain(scores.reshape(tokens.shape), "batch")

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
