"""Decoding, from outside: prompts, settings, and canvases on the way."""

import dataclasses

from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.caching import NONE

Prompt = str | list[dict[str, str]]
"""Plain text, or chat messages for the tokenizer's template."""

_HOLE = "_"


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Settings of decoding and loading; None stands for what the model was made for.

    Attributes:
        gen_length: canvas length; without a shipped model 128.
        block_length: block length; otherwise `gen_length`, which is full diffusion.
        cache: in the notation of `rollout.parse_cache`.
        temperature: of the denoiser; 0 takes the most probable token.
        top_k, top_p: tokens that are drawn from: the best k (0: all), the best of that mass.
        dtype: of weights and computation.
        quantization: of the layers' matrices, see `denoisers.quantization`.
        thinking: for chat templates that know reasoning.
    """

    gen_length: int | None = None
    block_length: int | None = None
    cache: str = NONE
    temperature: float = RolloutSettings.temperature
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p
    dtype: str | None = None
    quantization: str | None = None
    thinking: bool | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A canvas while it is filled.

    Attributes:
        number: forwards so far.
        tokens: the canvas, with masks where nothing is yet.
        step_map: the forward (from 0) that filled each position, -1 for none.
        pieces: text of each token.
        text: the text as it stands, up to its end; masks are left out.
    """

    number: int
    tokens: list[int]
    step_map: list[int]
    pieces: list[str]
    text: str

    def __str__(self) -> str:
        """The canvas; "_" where nothing is yet."""
        shown = zip(self.pieces, self.step_map, strict=True)
        return "".join(piece if step >= 0 else _HOLE for piece, step in shown)
