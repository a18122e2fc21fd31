"""One answer: a prompt is rolled out, decoded and described."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float

from jax_unmask import policies
from jax_unmask.denoisers import Denoiser, Params, Tokenizer
from jax_unmask.evaluation.recordings import record
from jax_unmask.rollout import RolloutSettings, Trajectory, Watcher, rollout, row_keys
from jax_unmask.rollout.canvases import Generated

Prompt = str | list[dict[str, str]]


class Writer(Protocol):
    """A model that answers."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        ...

    @property
    def policy(self) -> str:
        """Its policy, in the notation of `policies.parse_policy`."""
        ...

    @property
    def block_length(self) -> int:
        """Positions of a block."""
        ...

    def answer(self, prompt: Prompt, *, pad_to: int = 1, watch: Watcher | None = None) -> Answer:
        """Writes an answer; see `generate` for the arguments."""
        ...


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one prompt, with how it was generated.

    Attributes:
        prompt: text, or chat messages.
        prompt_tokens: tokens of the encoded prompt.
        trajectory: one row, NumPy arrays.
        text: the decoded answer, up to its end.
        settings: shape of the rollout.
        probability: the policy's probability of filling each position at each step [T, 1, L], if it
            was recorded and the policy has one.
    """

    prompt: Prompt
    prompt_tokens: int
    trajectory: Trajectory | Generated
    text: str
    settings: RolloutSettings
    probability: Float[Array, "T B L"] | None = None

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


def generate(
    denoiser: Denoiser,
    params: Params,
    tokenizer: Tokenizer,
    prompt: Prompt,
    policy: str,
    settings: RolloutSettings,
    *,
    seed: int,
    thinking: bool | None = None,
    pad_to: int = 1,
    watch: Watcher | None = None,
) -> Answer:
    """Rolls out one prompt.

    Args:
        denoiser: the dLLM.
        params: its parameters.
        tokenizer: its tokenizer.
        prompt: plain text, or chat messages for the tokenizer's template.
        policy: in the notation of `policies.parse_policy`.
        settings: shape of the rollout; with records, every step is kept.
        seed: seed of all that is drawn.
        thinking: for chat templates that know reasoning, whether it stays open.
        pad_to: the prompt is padded to a multiple of this length, where there is room.
        watch: called with the canvas after each step, while the rollout runs.

    Raises:
        ValueError: prompt and canvas do not fit into the model's maximal length, or the policy
            cannot be read.
    """
    chosen, policy_params = policies.parse_policy(policy)
    tokens = tokenizer.encode_prompt(prompt, thinking=thinking)
    room = denoiser.config.max_length - settings.gen_length
    if len(tokens) > room:
        raise ValueError(
            f"the prompt has {len(tokens)} tokens; with gen_length={settings.gen_length} the model "
            f"(max_length={denoiser.config.max_length}) has room for {max(room, 0)}. Shorten the "
            "prompt or lower --gen_length"
        )
    width = min(-(-len(tokens) // pad_to) * pad_to, room)
    roll_out = record if settings.record else _roll_out
    trajectory, probability = roll_out(
        denoiser,
        params,
        chosen,
        policy_params,
        tokenizer.pad_prompts([tokens], max(width, 1)),
        row_keys(jax.random.key(seed), 1),
        settings,
        watch,
    )
    text = tokenizer.decode(np.asarray(trajectory.tokens[0]))
    return Answer(prompt, len(tokens), trajectory, text, settings, probability)


def _roll_out(*arguments: Any) -> tuple[Trajectory, None]:
    """`record` without records."""
    return jax.device_get(rollout(*arguments)), None


@dataclasses.dataclass(frozen=True)
class MaskedWriter:
    """A masked denoiser with all that an answer needs.

    Attributes:
        denoiser: the dLLM.
        params: its parameters.
        tokenizer: its tokenizer.
        policy: in the notation of `policies.parse_policy`.
        settings: shape of the rollout.
        seed: seed of all that is drawn.
        thinking: for chat templates that know reasoning, whether it stays open.
    """

    denoiser: Denoiser
    params: Params
    tokenizer: Tokenizer
    policy: str
    settings: RolloutSettings
    seed: int
    thinking: bool | None = None

    @property
    def block_length(self) -> int:
        """Positions of a block."""
        return self.settings.block_length

    def answer(self, prompt: Prompt, *, pad_to: int = 1, watch: Watcher | None = None) -> Answer:
        """Writes an answer; see `generate`."""
        return generate(
            self.denoiser,
            self.params,
            self.tokenizer,
            prompt,
            self.policy,
            self.settings,
            seed=self.seed,
            thinking=self.thinking,
            pad_to=pad_to,
            watch=watch,
        )
