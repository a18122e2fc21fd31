"""The arguments of `jax_unmask.generate`, and what they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys

from jax_unmask import policies, tasks
from jax_unmask.denoisers import DenoiserConfig, Tokenizer, diffusion_gemma, families, hub
from jax_unmask.denoisers.quantization import TYPES
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.environment.bundle import load_model
from jax_unmask.generation import canvases
from jax_unmask.generation.answers import MaskedWriter, Prompt, Writer
from jax_unmask.rollout import RolloutSettings, parse_cache
from jax_unmask.shipped import resolve_model, shipped_lengths, shipped_models
from jax_unmask.tasks.base import Example, Split, Task

_SPLIT: Split = "test"
_DEFAULT_LENGTH = 128
_DEFAULT_POLICY = "threshold:threshold=0.9"


@dataclasses.dataclass(frozen=True)
class Problem:
    """The problem of `--task`, or the prompt.

    Attributes:
        prompt: the prompt; None to converse.
        task: whose checker judges, if any.
        example: the task's problem that the prompt is, if it is one.
    """

    prompt: Prompt | None
    task: Task | None = None
    example: Example | None = None

    def score(self, text: str) -> float | None:
        """Score that the task's checker gives an answer; None without a task."""
        if self.task is None or self.example is None:
            return None
        return self.task.check(self.example, text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(
        prog="python -m jax_unmask.generate",
        description="Fills canvases under an unmasking policy and prints the texts.",
    )
    shipped = ", ".join(shipped_models()) or "none"
    described.add_argument(
        "--model",
        required=True,
        help=f"a shipped model ({shipped}), a Hugging Face or Orbax directory, or a hub name",
    )
    _add_prompts(described.add_argument_group("what is asked"))
    _add_sampling(described.add_argument_group("how it is answered"))
    _add_output(described.add_argument_group("what is shown"))
    return described


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--prompt", help="the prompt; or give --task alone to pose one of its problems")
    add(
        "--chat",
        action="store_true",
        help="send --prompt as a user's message (chat template); without --prompt, converse: each "
        "line of standard input is a message, or a command (/help lists them)",
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
    add("--task", choices=tasks.posable(), help="a task whose checker judges the answer")
    add("--problem", type=int, default=0, help="which problem of the task's test split (from 0)")
    add("--data", help="directory of the task's data, for tasks that read files")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--policy",
        help=f"NAME:SETTING=VALUE,... or learned:DIR (names: {', '.join(policies.available())}); "
        f"default: {_DEFAULT_POLICY}, for DiffusionGemma {canvases.DEFAULT_POLICY}",
    )
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
    add(
        "--cache",
        default="none",
        help="prefix, dual (full attention; approximate) or block (block-causal; exact), with "
        "settings as in dual:refresh_every=8,extra_tokens=16; default: %(default)s",
    )
    add("--temperature", type=float, default=0.0, help="of the denoiser; default: 0 (arg max)")
    add("--top_k", type=int, default=0, help="draw from the k best tokens; default: 0 (all)")
    add("--top_p", type=float, default=1.0, help="draw from the best tokens of this mass")
    add("--seed", type=int, default=0, help="seed of all that is drawn; default: 0")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and computation")
    add("--quantization", choices=tuple(TYPES), help="the layers' matrices in a byte per weight")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--live",
        action=argparse.BooleanOptionalAction,
        help="show the canvas on standard error while it is filled: in place in a terminal, else a "
        "line per step; default: in a terminal, unless --json is given",
    )
    add(
        "--pace",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="with --live: show each step at least so long; the rollout waits; default: 0",
    )
    add("--trace", action="store_true", help="print the canvas after every step, afterwards")
    add(
        "--html",
        metavar="FILE",
        help="write the generation as a web page to step through; it needs no network",
    )
    add("--json", action="store_true", help="print one JSON object per answer instead of text")


def check(args: argparse.Namespace) -> None:
    """Raises for all mistakes in the arguments that show before the model is loaded.

    Raises:
        ValueError: names the argument, its value and a remedy.
        FileNotFoundError: a learned policy does not exist.
    """
    policies.parse_policy(args.policy or _DEFAULT_POLICY)
    if args.seed < 0:
        raise ValueError(f"--seed={args.seed} must not be negative")
    if args.html is not None and pathlib.Path(args.html).is_dir():
        raise ValueError(f"--html={args.html} is a directory; give the name of a file")
    if not 0 <= args.pace < 60:
        raise ValueError(f"--pace={args.pace} must be a number of seconds from 0 to below 60")
    settings(args)


def problem(args: argparse.Namespace) -> Problem:
    """The problem that the arguments name.

    Raises:
        ValueError: arguments that do not go together, or a problem that does not exist.
    """
    if args.system is not None and not args.chat:
        raise ValueError("--system is for chats: add --chat (or put it into --messages)")
    if args.messages is not None:
        if args.prompt is not None or args.task is not None or args.chat:
            raise ValueError("--messages is the whole prompt: leave out --prompt, --task, --chat")
        return Problem(_read_messages(args.messages))
    if args.task is None:
        if args.prompt is None and not args.chat:
            raise ValueError(
                "there is no prompt: give --prompt=TEXT, --task=NAME to pose one, or --chat to "
                "converse"
            )
        return Problem(_message(args))
    if args.task == "math" and args.data is None:
        raise ValueError("--task=math reads its problems from files: give --data=DIR")
    task = tasks.create(args.task, **({} if args.data is None else {"path": args.data}))
    if args.prompt is not None:
        return Problem(_message(args), task)
    source = task.source(_SPLIT)
    if not 0 <= args.problem < len(source):
        raise ValueError(
            f"--problem={args.problem} does not exist; {args.task} has {len(source)} test problems"
        )
    example = source[args.problem]
    return Problem(task.prompt(example), task, example)


def writer(args: argparse.Namespace) -> Writer:
    """The model, loaded as the arguments ask.

    Raises:
        FileNotFoundError: a file of the model is missing.
        ValueError: the model's files do not fit together, or not to the arguments.
    """
    directory = hub.local_directory(resolve_model(args.model))
    if diffusion_gemma.is_held_by(directory):
        return canvases.open_writer(args, directory, settings(args).gen_length)
    denoiser, params, tokenizer = load_model(
        str(directory), dtype=args.dtype, param_dtype=args.dtype, quantization=args.quantization
    )
    return MaskedWriter(
        denoiser,
        params,
        tokenizer,
        args.policy or _DEFAULT_POLICY,
        settings(args, denoiser.config, tokenizer),
        args.seed,
        None if args.thinking is None else args.thinking == "on",
    )


def system_turn(text: str | None) -> list[dict[str, str]]:
    """The messages that a conversation begins with."""
    return [] if text is None else [{"role": "system", "content": text}]


def settings(
    args: argparse.Namespace,
    config: DenoiserConfig | None = None,
    tokenizer: Tokenizer | None = None,
) -> RolloutSettings:
    """The rollout's settings; without the model, those that follow from the arguments alone.

    Raises:
        ValueError: a length or a sampling argument is out of range, or the cache is not for the
            denoiser.
    """
    length, block = _DEFAULT_LENGTH, 0
    if args.model in shipped_models():
        _, length, block = shipped_lengths(args.model)
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
        sampling = families.sampling(config.family, args.top_k, args.top_p)
    cache = parse_cache(args.cache)
    if cache is not None and config is not None:
        cache.check(config)
    if trained_block is not None and tokenizer is not None:
        # Block-causal models were not trained to predict tokens after the end of a text.
        stop_ids = tokenizer.stop_ids
    return RolloutSettings(
        gen_length=length,
        block_length=block,
        temperature=args.temperature,
        record=args.html is not None,
        sampling=sampling,
        stop_ids=stop_ids,
        cache=cache,
    )


def _message(args: argparse.Namespace) -> Prompt | None:
    if not args.chat or args.prompt is None:
        return args.prompt
    return [*system_turn(args.system), {"role": "user", "content": args.prompt}]


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
