"""Hidden states of partly masked canvases, as the denoiser saw them in the rollout."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import Copies
from jax_unmask.denoisers.positions import default_positions
from jax_unmask.denoisers.transformer import Params
from jax_unmask.learners.states.surrogates import States
from jax_unmask.rollout.trajectory import Prompts

Origin = Literal["text", "response"]


@dataclasses.dataclass(frozen=True)
class AttentionBlocks:
    """The blocks of a block-causal denoiser in training.

    Attributes:
        length: tokens per block; that of the rollout, or another one where a denoiser learns to
            work in longer blocks.
        origin: the start of the count. "text": from the start of the text, as every decoder
            does; the first block of a response then begins with what the prompt leaves of one.
            "response": from the first response token, as the public code of TraceRL trains; unless
            the prompt is a whole number of blocks, these are not the states of the rollout.
    """

    length: int
    origin: Origin = "text"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"block length {self.length} must be at least 1")
        if self.origin not in ("text", "response"):
            raise ValueError(f"origin={self.origin!r} is unknown; choose 'text' or 'response'")

    def of_positions(
        self, positions: Int[Array, "B S"], prompt: Bool[Array, "B P"]
    ) -> Int[Array, "B S"]:
        """Block of each position of a text; below 0 for prompts where responses begin one.

        Args:
            positions: positions in the text.
            prompt: real tokens of the prompt.
        """
        if self.origin == "response":
            positions = positions - jnp.sum(prompt, axis=-1, keepdims=True, dtype=jnp.int32)
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
    mask_id = denoiser.config.mask_token_id
    prompt = prompts.tokens
    if states.prompt_masked is not None:
        prompt = jnp.where(states.prompt_masked, mask_id, prompt)
    noisy = jnp.where(states.masked, mask_id, tokens)
    if blocks is not None:
        return _in_copies(denoiser, params, prompts, prompt, tokens, noisy, blocks)
    real = jnp.concatenate([prompts.mask, jnp.ones(tokens.shape, bool)], axis=1)
    hidden = denoiser.apply(
        {"params": params},
        jnp.concatenate([prompt, noisy], axis=1),
        attention_mask=real,
        method="hidden",
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
