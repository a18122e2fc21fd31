"""Several examples in one row of tokens: supervised training without padding.

Attention does not cross examples and positions start anew in each, so an example has the same
hidden states as in a row of its own, and a batch the same loss and gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import Copies
from jax_unmask.learners.engine import Chunk, Minibatches, Params, split
from jax_unmask.learners.states import StateBatch
from jax_unmask.learners.surrogates import Autoregressive
from jax_unmask.runtime.mesh import by_rows


@struct.dataclass
class Packing:
    """Places of the tokens of B examples in R rows of W places.

    The text of an example is its padded prompt and its canvas, P + L positions; some of them have
    no place: the prompt's padding, and the end of the canvas.

    Attributes:
        example: example of each segment of a row; -1 for none.
        segment: segment of each place; -1 for padding.
        source: position of each place in the text of its example.
    """

    example: Int[Array, "R K"]
    segment: Int[Array, "R W"]
    source: Int[Array, "R W"]


def pack(first: Int[np.ndarray, " B"], last: Int[np.ndarray, " B"], width: int) -> Packing:
    """Rows for examples, the longest first, each into the first row that has room for it.

    There are B rows, of which the last may stay empty.

    Args:
        first: first position of each example in its text.
        last: the position after its last one.
        width: W.

    Raises:
        ValueError: an example does not fit a row.
    """
    lengths = last - first
    if lengths.max() > width:
        raise ValueError(f"an example has {lengths.max()} tokens, more than width={width}")
    room: list[int] = []
    members: list[list[int]] = []
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[example])
        row = next((row for row, free in enumerate(room) if free >= length), len(room))
        if row == len(room):
            room.append(width)
            members.append([])
        room[row] -= length
        members[row].append(example)
    # A power of two, so that batches share programs.
    most = 1 << (max(map(len, members)) - 1).bit_length()
    count = len(lengths)
    shape = (count, width)
    found = Packing(
        example=np.full((count, most), -1, np.int32),  # type: ignore[arg-type]
        segment=np.full(shape, -1, np.int32),  # type: ignore[arg-type]
        source=np.zeros(shape, np.int32),  # type: ignore[arg-type]
    )
    for row, examples in enumerate(members):
        place = 0
        for number, example in enumerate(examples):
            end = place + int(lengths[example])
            found.example[row, number] = example
            found.segment[row, place:end] = number
            found.source[row, place:end] = np.arange(first[example], last[example])
            place = end
    return found


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """The states of a batch, those of the examples of a row in one forward.

    The grid of the engine's cells has a row of N states for each packed row: [N, R].

    Attributes:
        batch: the examples, each in a row of its own.
        packing: where they lie.
    """

    batch: StateBatch
    packing: Packing

    def minibatches(self, wanted: Bool[Array, "N B"]) -> Minibatches:
        """The cells that hold a state of an example that is wanted."""
        example = self.packing.example
        cells = (wanted[:, jnp.maximum(example, 0)] & (example >= 0)).any(axis=-1)
        return split(cells, shards=self.batch.shards)

    def score(
        self, params: Params, at: Chunk
    ) -> tuple[Float[Array, "C W"], Float[Array, "C W"], Bool[Array, "C W"]]:
        """Log-probabilities, weights and flags of the trained tokens of a chunk of rows."""
        batch, settings = self.batch, self.batch.settings
        rows = by_rows(jax.tree.map(lambda leaf: leaf[at.row], self.packing))
        count, most = rows.example.shape
        # 1. The states of all examples of these rows, as in rows of their own.
        flat = jnp.maximum(rows.example, 0).reshape(-1)
        is_there = ((rows.example >= 0) & at.valid[:, None]).reshape(-1)
        cells = Chunk(jnp.repeat(at.step, most), flat, is_there)
        states = batch.states(0, cells)
        prompts, tokens = batch.take(cells)
        prompt_length = prompts.tokens.shape[1]
        of_prompt = jnp.zeros(prompts.tokens.shape, bool)
        hidden_prompt = of_prompt if states.prompt_masked is None else states.prompt_masked

        # 2. What of them lies in the rows.
        def placed(*text: Array) -> Array:
            whole = jnp.concatenate(text, axis=1).reshape(count, -1)
            length = whole.shape[1] // most
            at = jnp.maximum(rows.segment, 0) * length + rows.source
            return jnp.take_along_axis(whole, at, axis=1)

        real = rows.segment >= 0
        clean = placed(prompts.tokens, tokens)
        masked = placed(hidden_prompt, states.masked) & real
        trained = placed(of_prompt, states.trained) & real
        weight = placed(of_prompt.astype(jnp.float32), batch.weights(states))
        start = placed(*_repeated(_first(prompts.mask), prompt_length, tokens.shape[1]))
        positions = jnp.where(real, rows.source - start, 0)
        hidden = self._hidden(params, clean, masked, positions, rows.segment)
        # 3. Their scores.
        scores = settings.log_prob(params, hidden, clean, trained)
        return scores, jnp.where(trained, weight, 0.0), trained

    def _hidden(
        self, params: Params, clean: Array, masked: Array, positions: Array, segment: Array
    ) -> Float[Array, "C W D"]:
        """Last hidden states of the masked texts; with block attention those of a copy of them."""
        settings, real = self.batch.settings, segment >= 0
        denoiser, blocks = settings.denoiser, settings.blocks
        noisy = jnp.where(masked, denoiser.config.mask_token_id, clean)
        doubled: Callable[[Array, Array], Array] = lambda text, copy: copy
        is_causal = isinstance(settings.surrogate, Autoregressive)
        if is_causal:
            block = positions
        elif blocks is None:
            # Every token sees its own segment, as a block of a copy does.
            block = segment
        else:
            doubled = lambda text, copy: jnp.concatenate([text, copy], axis=1)
            block = blocks.of_positions(positions, real)
        # A causal text has no copy: nothing of it is masked.
        is_copy = doubled(jnp.zeros_like(real), jnp.full_like(real, not is_causal))
        copies = Copies(
            block=doubled(block, block),
            noisy=is_copy,
            real=doubled(real, real),
            text=doubled(segment, segment),
        )
        hidden = denoiser.apply(
            {"params": params},
            doubled(clean, noisy),
            positions=doubled(positions, positions),
            copies=copies,
            method="hidden",
        )
        return cast(Any, hidden)[:, -clean.shape[1] :]


def _first(mask: Bool[Array, "N P"]) -> Int[Array, " N"]:
    """The first real position of left-padded prompts."""
    return mask.shape[1] - jnp.sum(mask, axis=1, dtype=jnp.int32)


def _repeated(value: Int[Array, " N"], *lengths: int) -> list[Int[Array, "N L"]]:
    return [jnp.broadcast_to(value[:, None], (len(value), length)) for length in lengths]
