"""Answers: a prompt is rolled out, decoded and described."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jax_unmask import policies
from jax_unmask.denoisers import Denoiser, Params, Tokenizer, diffusion_gemma
from jax_unmask.evaluation.viewing import record
from jax_unmask.prompts import Prompts
from jax_unmask.rollout import (
    RolloutSettings,
    Trajectory,
    Watcher,
    canvases,
    rollout,
    row_keys,
)
from jax_unmask.rollout.canvases import CanvasSettings, Generated
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.runtime import streams

Prompt = str | list[dict[str, str]]
"""Plain text, or chat messages for the tokenizer's template."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    `probability` is the policy's, of filling each position at each step, if it was recorded and the
    policy has one.
    """

    prompt: Prompt
    prompt_tokens: int
    trajectory: Trajectory | Generated  # One row, NumPy arrays.
    text: str  # Up to its end.
    settings: RolloutSettings
    probability: Float[Array, "T 1 L"] | None = None

    def record(self) -> dict[str, Any]:
        """Everything about it that JSON can hold, position by position."""
        trajectory, settings = self.trajectory, self.settings
        confidence = np.asarray(trajectory.confidence[0], np.float64)
        described = {
            "text": self.text,
            "tokens": trajectory.tokens[0].tolist(),
            "step_map": trajectory.step_map[0].tolist(),
            "confidence": [float(f"{value:.6g}") for value in confidence],
            "nfe": int(trajectory.nfe[0]),
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "gen_length": settings.gen_length,
            "block_length": settings.block_length,
            "temperature": settings.temperature,
            "top_k": settings.sampling.top_k,
            "top_p": settings.sampling.top_p,
        }
        if isinstance(trajectory, Trajectory):
            described["cache"] = "none" if settings.cache is None else str(settings.cache)
            described["cost"] = float(trajectory.cost[0])
        return described


@dataclasses.dataclass
class MaskedWriter:
    """A masked denoiser that answers prompts, with a policy in the notation of `parse_policy`.

    With `settings.record`, every step is kept. `thinking` is for chat templates that know
    reasoning, see `Tokenizer.encode_prompt`. `name` is that of the denoiser.
    """

    denoiser: Denoiser
    params: Params
    tokenizer: Tokenizer
    policy: str
    settings: RolloutSettings
    seed: int
    thinking: bool | None = None
    name: str = ""

    @property
    def environment(self) -> dict[str, str | int]:
        """Where the policy acts, as far as that is known; see `policies.parse_policy`."""
        return {"denoiser": self.name, **self.settings.environment}

    @property
    def block_length(self) -> int:
        """Positions of a block."""
        return self.settings.block_length

    def answer(
        self, prompt: Prompt, *, turn: int = 0, pad_to: int = 1, watch: Watcher | None = None
    ) -> Answer:
        """Rolls out one prompt.

        Args:
            prompt: text, or chat messages.
            turn: number of the answer; each has random numbers of its own.
            pad_to: the prompt is padded to a multiple of this length, where there is room.
            watch: called with the canvas after each step, while the rollout runs.

        Raises:
            ValueError: prompt and canvas do not fit into the model's maximal length, or the policy
                cannot be read.
            FloatingPointError: the denoiser's scores are not finite.
        """
        policy, params = policies.parse_policy(self.policy, environment=self.environment)
        max_length = self.denoiser.config.max_length
        prompts, count = _encode(self, prompt, self.settings.gen_length, max_length, pad_to)
        model, keys = (self.denoiser, self.params), _keys(self.seed, turn)
        settings, probability = self.settings, None
        if settings.record:
            trajectory, probability = record(*model, policy, params, prompts, keys, settings, watch)
        else:
            trajectory = rollout(*model, policy, params, prompts, keys, settings, watch)
        trajectory = jax.device_get(trajectory)
        check_finite(trajectory.confidence, trajectory.step_map)
        text = self.tokenizer.decode(np.asarray(trajectory.tokens[0]))
        return Answer(prompt, count, trajectory, text, self.settings, probability)


@dataclasses.dataclass
class CanvasWriter:
    """A DiffusionGemma, whose canvases start as random tokens; used as `MaskedWriter`."""

    loaded: diffusion_gemma.Checkpoint
    tokenizer: Tokenizer
    policy: str
    settings: CanvasSettings
    seed: int
    thinking: bool | None = None

    @property
    def block_length(self) -> int:
        return self.loaded.model.config.canvas_length

    def answer(
        self, prompt: Prompt, *, turn: int = 0, pad_to: int = 1, watch: Watcher | None = None
    ) -> Answer:
        config = self.loaded.model.config
        policy, params = policies.parse_policy(self.policy)
        length = self.settings.canvases * config.canvas_length
        prompts, count = _encode(self, prompt, length, config.max_length, pad_to)
        arguments = (self.loaded.model, self.loaded.params, policy, params, prompts)
        keys = _keys(self.seed, turn)
        written = jax.device_get(canvases.generate(*arguments, keys, self.settings, watch))
        check_finite(written.confidence, written.step_map)
        text = self.tokenizer.decode(np.asarray(written.tokens[0]))
        shape = RolloutSettings(gen_length=length, block_length=config.canvas_length)
        return Answer(prompt, count, written, text, shape)


Writer = MaskedWriter | CanvasWriter


def _encode(
    writer: Writer, prompt: Prompt, length: int, max_length: int, pad_to: int
) -> tuple[Prompts, int]:
    """A batch of one prompt, and its number of tokens."""
    tokens = writer.tokenizer.encode_prompt(prompt, thinking=writer.thinking)
    room = max_length - length
    if len(tokens) > room:
        raise ValueError(
            f"the prompt has {len(tokens)} tokens; with gen_length={length} the model "
            f"(max_length={max_length}) has room for {max(room, 0)}. Shorten the prompt or lower "
            "--gen_length"
        )
    width = min(-(-len(tokens) // pad_to) * pad_to, room)
    return writer.tokenizer.pad_prompts([tokens], max(width, 1)), len(tokens)


def _keys(seed: int, turn: int) -> Array:
    """The key of an answer's row, [1]."""
    return row_keys(streams.stream(streams.root(seed), "turn", turn), 1)
