"""Fills canvases and prints them: `python -m jax_unmask.generate --model=sudoku --task=sudoku`.

With `--chat` and no prompt it converses: every line of standard input is a turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jax_unmask import commands, policies, tasks
from jax_unmask.denoisers import Denoiser, DenoiserConfig, Params, Tokenizer, families
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.evaluation.bundle import load_model, shipped_models
from jax_unmask.report import canvas
from jax_unmask.rollout import RolloutSettings, Trajectory, rollout, row_keys
from jax_unmask.runtime import compilation
from jax_unmask.tasks.base import Example, Split, Task

_SPLIT: Split = "test"
_MADE_FOR = {"sudoku": (16, 4), "arithmetic": (32, 8)}
"""Canvas and block length that the shipped models were trained for."""
_DEFAULT_LENGTH = 128
_TURN_WIDTH = 64
"""In a conversation, prompts are padded to multiples of this: most turns then compile nothing."""
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
    thinking: bool | None = None,
    pad_to: int = 1,
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
        thinking: for chat templates that know reasoning, whether it stays open.
        pad_to: the prompt is padded to a multiple of this length, where there is room.

    Returns:
        The trajectory of one row as NumPy arrays, and the number of prompt tokens.

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
    trajectory = rollout(
        denoiser,
        params,
        chosen,
        policy_params,
        tokenizer.pad_prompts([tokens], max(width, 1)),
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
    add(
        "--chat",
        action="store_true",
        help="send --prompt as a user's message (chat template); without --prompt, converse: each "
        "line of standard input is a message",
    )
    add("--system", help="with --chat: the system prompt")
    add(
        "--messages",
        metavar="FILE",
        help="a conversation to continue: JSON list of objects with role and content (- for "
        "standard input)",
    )
    add(
        "--thinking",
        choices=("on", "off"),
        help="for chat templates that know reasoning; default: what the template does",
    )
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
        help="block length; default: what a shipped or block-causal model was made for, else "
        "gen_length, which is full diffusion",
    )
    add("--temperature", type=float, default=0.0, help="of the denoiser; default: 0 (arg max)")
    add("--top_k", type=int, default=0, help="draw from the k best tokens; default: 0 (all)")
    add("--top_p", type=float, default=1.0, help="draw from the best tokens of this mass")
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
    _settings(args)
    denoiser, params, tokenizer = load_model(args.model, dtype=args.dtype, param_dtype=args.dtype)
    settings = _settings(args, denoiser.config, tokenizer)

    def answer(prompt: str | list[dict[str, str]], pad_to: int = 1) -> str:
        trajectory, prompt_tokens = generate(
            denoiser,
            params,
            tokenizer,
            prompt,
            args.policy,
            settings,
            seed=args.seed,
            thinking=None if args.thinking is None else args.thinking == "on",
            pad_to=pad_to,
        )
        text = tokenizer.decode(np.asarray(trajectory.tokens[0]))
        score = None if task is None or example is None else task.check(example, text)
        if args.json:
            record = _record(args, trajectory, text, prompt, prompt_tokens, settings, score)
            sys.stdout.write(json.dumps(record) + "\n")
        else:
            _show(args, trajectory, tokenizer, text, settings, score)
        sys.stdout.flush()
        return text

    if prompt is not None:
        answer(prompt)
        return
    messages = _system(args)
    for line in _turns():
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": answer(messages, _TURN_WIDTH)})


def _show(
    args: argparse.Namespace,
    trajectory: Trajectory,
    tokenizer: Tokenizer,
    text: str,
    settings: RolloutSettings,
    score: float | None,
) -> None:
    """Writes the text, before it the canvas step by step if that is asked for."""
    if args.trace:
        pieces = [_piece(tokenizer, token) for token in trajectory.tokens[0].tolist()]
        lines = canvas.trace(
            pieces,
            np.asarray(trajectory.step_map[0]),
            block_length=settings.block_length,
            colour=canvas.has_colour(sys.stdout),
        )
        sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.write(text + "\n")
    summary = f"NFE {int(trajectory.nfe[0])} for {settings.gen_length} positions"
    if score is not None:
        summary += f"; score {score:g}"
    sys.stderr.write(summary + "\n")


def _turns() -> Iterator[str]:
    """The lines of standard input that are not empty; in a terminal, each is asked for."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _pose(
    args: argparse.Namespace,
) -> tuple[Task | None, Example | None, str | list[dict[str, str]] | None]:
    """Task and example, where there are any, and the prompt; None to converse."""
    if args.system is not None and not args.chat:
        raise ValueError("--system is for chats: add --chat (or put it into --messages)")
    if args.messages is not None:
        if args.prompt is not None or args.task is not None or args.chat:
            raise ValueError("--messages is the whole prompt: leave out --prompt, --task, --chat")
        return None, None, _read_messages(args.messages)
    if args.task is None:
        if args.prompt is None and not args.chat:
            raise ValueError(
                "there is no prompt: give --prompt=TEXT, --task=NAME to pose one, or --chat to "
                "converse"
            )
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


def _system(args: argparse.Namespace) -> list[dict[str, str]]:
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def _message(args: argparse.Namespace) -> str | list[dict[str, str]] | None:
    if not args.chat or args.prompt is None:
        return args.prompt
    return [*_system(args), {"role": "user", "content": args.prompt}]


def _read_messages(file: str) -> list[dict[str, str]]:
    """A conversation from a JSON file.

    Raises:
        ValueError: it is not a list of messages.
    """
    text = sys.stdin.read() if file == "-" else pathlib.Path(file).read_text(encoding="utf-8")
    try:
        messages = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--messages={file} is not valid JSON: {error}") from error
    well_formed = isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )
    if not well_formed or not messages:
        raise ValueError(
            f'--messages={file} must hold a list such as [{{"role": "user", "content": "..."}}]'
        )
    return messages


def _settings(
    args: argparse.Namespace,
    config: DenoiserConfig | None = None,
    tokenizer: Tokenizer | None = None,
) -> RolloutSettings:
    """The rollout's shape; without the model, as far as the arguments alone tell it."""
    length, block = _MADE_FOR.get(args.model, (_DEFAULT_LENGTH, 0))
    length = length if args.gen_length is None else args.gen_length
    trained_block = None if config is None else config.attention_block
    if args.block_length is not None:
        block = args.block_length
    elif trained_block is not None:
        block = trained_block
    elif not block or length % block:
        block = length
    sampling = Sampling(top_k=args.top_k, top_p=args.top_p)
    stop_ids: tuple[int, ...] = ()
    if config is not None:
        family = families.named(config.family)
        sampling = dataclasses.replace(
            sampling,
            top_p_first=family.top_p_first,
            filtered_confidence=family.draws_from_filtered,
        )
    if trained_block is not None and tokenizer is not None:
        # What comes after the end of a text, block-causal models were not trained to predict.
        stop_ids = tokenizer.stop_ids
    return RolloutSettings(
        gen_length=length,
        block_length=block,
        temperature=args.temperature,
        sampling=sampling,
        stop_ids=stop_ids,
    )


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
        "top_k": settings.sampling.top_k,
        "top_p": settings.sampling.top_p,
    }
    return record if score is None else record | {"score": score}


if __name__ == "__main__":
    main()
