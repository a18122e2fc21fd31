"""Fills one canvas and prints it: `python -m jax_unmask.generate --model=sudoku --task=sudoku`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_unmask import commands, policies, tasks
from jax_unmask.denoisers import Denoiser, Params, Tokenizer
from jax_unmask.evaluation.bundle import load_model, shipped_models
from jax_unmask.report import canvas
from jax_unmask.rollout import RolloutSettings, Trajectory, rollout, row_keys
from jax_unmask.runtime import compilation
from jax_unmask.tasks.base import Example, Split, Task

_SPLIT: Split = "test"
_MADE_FOR = {"sudoku": (16, 4), "arithmetic": (32, 8)}
"""Canvas and block length that the shipped models were trained for."""
_DEFAULT_LENGTH = 128
# A mixture is a way to train, not a task to pose.
_TASKS = [name for name in tasks.names() if name != "mixture"]


def generate(
    denoiser: Denoiser,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str | list[dict[str, str]],
    policy: str,
    settings: RolloutSettings,
    *,
    seed: int,
) -> tuple[Trajectory, int]:
    """Rolls out one prompt.

    Args:
        denoiser: the dLLM.
        params: its parameters.
        tokenizer: its tokenizer.
        prompt: plain text, or chat messages for the tokenizer's template.
        policy: in the notation of `policies.parse_policy`.
        settings: shape of the rollout.
        seed: seed of all that is drawn.

    Returns:
        The trajectory of one row as NumPy arrays, and the number of prompt tokens.

    Raises:
        ValueError: prompt and canvas do not fit into the model's maximal length, or the policy
            cannot be read.
    """
    chosen, policy_params = policies.parse_policy(policy)
    tokens = tokenizer.encode_prompt(prompt)
    room = denoiser.config.max_length - settings.gen_length
    if len(tokens) > room:
        raise ValueError(
            f"the prompt has {len(tokens)} tokens; with gen_length={settings.gen_length} the model "
            f"(max_length={denoiser.config.max_length}) has room for {max(room, 0)}. Shorten the "
            "prompt or lower --gen_length"
        )
    trajectory = rollout(
        denoiser,
        params,
        chosen,
        policy_params,
        tokenizer.pad_prompts([tokens], max(len(tokens), 1)),
        row_keys(jax.random.key(seed), 1),
        settings,
    )
    return jax.device_get(trajectory), len(tokens)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(
        prog="python -m jax_unmask.generate",
        description="Fills one canvas under an unmasking policy and prints the text.",
    )
    add = described.add_argument
    shipped = ", ".join(shipped_models()) or "none"
    add(
        "--model",
        required=True,
        help=f"a shipped model ({shipped}), a Hugging Face or Orbax directory, or a hub name",
    )
    add(
        "--policy",
        default="threshold:threshold=0.9",
        help=f"NAME:SETTING=VALUE,... or learned:DIR (names: {', '.join(policies.available())}); "
        "default: %(default)s",
    )
    add("--prompt", help="the prompt; or give --task alone to pose one of its problems")
    add("--chat", action="store_true", help="send --prompt as a user's message (chat template)")
    add("--task", choices=_TASKS, help="a task whose checker judges the answer")
    add("--problem", type=int, default=0, help="which problem of the task's test split (from 0)")
    add("--data", help="directory of the task's data, for tasks that read files")
    add(
        "--gen_length",
        type=int,
        help=f"canvas length; default: what a shipped model was made for, else {_DEFAULT_LENGTH}",
    )
    add(
        "--block_length",
        type=int,
        help="block length; default: what a shipped model was made for, else gen_length, which is "
        "full diffusion",
    )
    add("--temperature", type=float, default=0.0, help="of the denoiser; default: 0 (arg max)")
    add("--seed", type=int, default=0, help="seed of all that is drawn; default: 0")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and computation")
    add("--trace", action="store_true", help="show the canvas after every step")
    add("--json", action="store_true", help="print one JSON object instead of text")
    return described


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(arguments)
    commands.set_up_logging()
    compilation.enable_cache()
    with commands.clear_errors():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    # All that can be wrong without the model is checked before the model is loaded.
    policies.parse_policy(args.policy)
    task, example, prompt = _pose(args)
    if args.seed < 0:
        raise ValueError(f"--seed={args.seed} must not be negative")
    settings = _settings(args)
    denoiser, params, tokenizer = load_model(args.model, dtype=args.dtype, param_dtype=args.dtype)
    trajectory, prompt_tokens = generate(
        denoiser, params, tokenizer, prompt, args.policy, settings, seed=args.seed
    )
    tokens, step_map = np.asarray(trajectory.tokens[0]), np.asarray(trajectory.step_map[0])
    text = tokenizer.decode(tokens)
    score = None if task is None or example is None else task.check(example, text)
    if args.json:
        record = _record(args, trajectory, text, prompt, prompt_tokens, settings, score)
        sys.stdout.write(json.dumps(record) + "\n")
        return
    if args.trace:
        pieces = [_piece(tokenizer, token) for token in tokens.tolist()]
        lines = canvas.trace(
            pieces,
            step_map,
            block_length=settings.block_length,
            colour=canvas.has_colour(sys.stdout),
        )
        sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.write(text + "\n")
    summary = f"NFE {int(trajectory.nfe[0])} for {settings.gen_length} positions"
    if score is not None:
        summary += f"; score {score:g}"
    sys.stderr.write(summary + "\n")


def _pose(
    args: argparse.Namespace,
) -> tuple[Task | None, Example | None, str | list[dict[str, str]]]:
    """Task and example, where there are any, and the prompt."""
    if args.task is None:
        if args.prompt is None:
            raise ValueError("there is no prompt: give --prompt=TEXT, or --task=NAME to pose one")
        return None, None, _message(args)
    if args.task == "math" and args.data is None:
        raise ValueError("--task=math reads its problems from files: give --data=DIR")
    task = tasks.create(args.task, **({} if args.data is None else {"path": args.data}))
    if args.prompt is not None:
        return task, None, _message(args)
    source = task.source(_SPLIT)
    if not 0 <= args.problem < len(source):
        raise ValueError(
            f"--problem={args.problem} does not exist; {args.task} has {len(source)} test problems"
        )
    example = source[args.problem]
    return task, example, task.prompt(example)


def _message(args: argparse.Namespace) -> str | list[dict[str, str]]:
    return [{"role": "user", "content": args.prompt}] if args.chat else args.prompt


def _settings(args: argparse.Namespace) -> RolloutSettings:
    length, block = _MADE_FOR.get(args.model, (_DEFAULT_LENGTH, 0))
    length = length if args.gen_length is None else args.gen_length
    if args.block_length is not None:
        block = args.block_length
    elif not block or length % block:
        block = length
    return RolloutSettings(gen_length=length, block_length=block, temperature=args.temperature)


def _piece(tokenizer: Tokenizer, token: int) -> str:
    """Text of one token, special ones included."""
    return tokenizer.decode([token], skip_special_tokens=False, cut_at_eos=False)


def _record(
    args: argparse.Namespace,
    trajectory: Trajectory,
    text: str,
    prompt: Any,
    prompt_tokens: int,
    settings: RolloutSettings,
    score: float | None,
) -> dict[str, Any]:
    confidence = np.asarray(trajectory.confidence[0], np.float64)
    record = {
        "text": text,
        "tokens": trajectory.tokens[0].tolist(),
        "step_map": trajectory.step_map[0].tolist(),
        "confidence": [float(f"{value:.6g}") for value in confidence],
        "nfe": int(trajectory.nfe[0]),
        "seed": args.seed,
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "model": args.model,
        "policy": args.policy,
        "gen_length": settings.gen_length,
        "block_length": settings.block_length,
        "temperature": settings.temperature,
    }
    return record if score is None else record | {"score": score}


if __name__ == "__main__":
    main()
