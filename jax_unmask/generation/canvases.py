"""Answers of DiffusionGemma, whose canvases start as random tokens."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import jax
import numpy as np

from jax_unmask import policies
from jax_unmask.denoisers import Tokenizer, diffusion_gemma, load_tokenizer
from jax_unmask.denoisers.diffusion_gemma.config import MODEL_TYPE
from jax_unmask.generation.answers import Answer, Prompt
from jax_unmask.rollout import RolloutSettings, canvases, row_keys
from jax_unmask.rollout.canvases import CanvasSettings
from jax_unmask.rollout.trajectory import Watcher

DEFAULT_POLICY = "entropy_bounded:gamma=0.1"
# Arguments that mean nothing here, with the values that they have if they are not given.
_UNUSED = {
    "block_length": None,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "quantization": None,
    "html": None,
    "cache": "none",
}


@dataclasses.dataclass(frozen=True)
class CanvasWriter:
    """A DiffusionGemma with all that an answer needs; see `answers.Writer`.

    Attributes:
        loaded: the model.
        tokenizer: its tokenizer.
        policy: in the notation of `policies.parse_policy`.
        settings: number of canvases; the rest as published.
        seed: seed of all that is drawn.
        thinking: for chat templates that know reasoning, whether it stays open.
    """

    loaded: diffusion_gemma.Checkpoint
    tokenizer: Tokenizer
    policy: str
    settings: CanvasSettings
    seed: int
    thinking: bool | None = None

    @property
    def block_length(self) -> int:
        """Positions of a canvas."""
        return self.loaded.model.config.canvas_length

    def answer(self, prompt: Prompt, *, pad_to: int = 1, watch: Watcher | None = None) -> Answer:
        """Writes an answer; see `answers.generate`."""
        config = self.loaded.model.config
        policy, params = policies.parse_policy(self.policy)
        tokens = self.tokenizer.encode_prompt(prompt, thinking=self.thinking)
        length = self.settings.canvases * config.canvas_length
        room = config.max_length - length
        if len(tokens) > room:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; with gen_length={length} the model "
                f"(max_length={config.max_length}) has room for {max(room, 0)}. Shorten the prompt "
                "or lower --gen_length"
            )
        width = max(min(-(-len(tokens) // pad_to) * pad_to, room), 1)
        written = jax.device_get(
            canvases.generate(
                self.loaded.model,
                self.loaded.params,
                policy,
                params,
                self.tokenizer.pad_prompts([tokens], width),
                row_keys(jax.random.key(self.seed), 1),
                self.settings,
                watch,
            )
        )
        text = self.tokenizer.decode(np.asarray(written.tokens[0]))
        shape = RolloutSettings(gen_length=length, block_length=config.canvas_length)
        return Answer(prompt, len(tokens), written, text, shape)


def open_writer(args: argparse.Namespace, directory: pathlib.Path, gen_length: int) -> CanvasWriter:
    """Loads a model as the arguments of the command ask.

    Args:
        args: the arguments.
        directory: the model's.
        gen_length: tokens of an answer at most, rounded up to whole canvases.

    Raises:
        ValueError: an argument means nothing for this model.
    """
    for name, default in _UNUSED.items():
        if getattr(args, name) != default:
            raise ValueError(
                f"--{name}={getattr(args, name)} is for masked models; {args.model} is a "
                f"{MODEL_TYPE}, which has canvases and a temperature schedule of its own. Leave "
                "it out"
            )
    tokenizer = load_tokenizer(directory, needs_mask=False)
    loaded = diffusion_gemma.load(directory, dtype=args.dtype, param_dtype=args.dtype)
    config = loaded.model.config
    tokenizer.stop_ids = tuple(dict.fromkeys([tokenizer.eos_id, *config.eos_token_ids]))
    return CanvasWriter(
        loaded,
        tokenizer,
        args.policy or DEFAULT_POLICY,
        CanvasSettings(canvases=-(-gen_length // config.canvas_length)),
        args.seed,
        None if args.thinking is None else args.thinking == "on",
    )
