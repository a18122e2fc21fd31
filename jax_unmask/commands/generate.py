"""Fills canvases and prints them: `python -m jax_unmask.generate`.

With `--chat` and no prompt it converses: every line of standard input is a turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from jax_unmask import notation, policies, tasks
from jax_unmask.commands import command_line
from jax_unmask.denoisers import (
    DenoiserConfig,
    Tokenizer,
    diffusion_gemma,
    families,
    hub,
    load_tokenizer,
)
from jax_unmask.denoisers.quantization import TYPES
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.denoisers.tokenizer import UnknownWords
from jax_unmask.environment.bundle import load_model
from jax_unmask.generation.answers import Answer, CanvasWriter, MaskedWriter, Prompt, Writer
from jax_unmask.generation.conversation import converse, system_turn
from jax_unmask.policies.calibration import load_calibrations
from jax_unmask.policies.checkpoint import MadeFor, made_for
from jax_unmask.report import canvas, page, traces
from jax_unmask.rollout import RolloutSettings, Trajectory, parse_cache
from jax_unmask.rollout.canvases import CanvasSettings
from jax_unmask.runtime import compilation
from jax_unmask.runtime.terminal import harmless
from jax_unmask.shipped import shipped_lengths, shipped_models
from jax_unmask.tasks.base import Example, Task

_DEFAULT_LENGTH = 128
_DEFAULT_POLICY = "threshold:threshold=0.9"
_DEFAULT_CANVAS_POLICY = "entropy_bounded:gamma=0.1"
_SHAPE = ("task", "gen_length", "block_length", "distribution")
_TURN_WIDTH = 64
"""In a conversation, prompts are padded to multiples of this: most turns then compile nothing."""
# Arguments that mean nothing for DiffusionGemma, with the values that they have if not given.
_MASKED_ONLY = {
    "block_length": None,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "quantization": None,
    "html": None,
    "cache": "none",
}


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt (None to converse), with the task and its problem that it is from, if any."""

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
        help=f"a shipped model ({shipped}), a Hugging Face or Orbax directory, or a hub name; "
        "default: the one that the policy was trained for",
    )
    add = described.add_argument_group("prompt").add_argument
    add("--prompt", help="the prompt; without one, --task poses a problem")
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
    named = f"NAME:SETTING=VALUE,... (names: {', '.join(tasks.posable())})"
    add(
        "--task",
        help=f"a task whose checker judges the answer, {named}; default, where there is no prompt: "
        "the one that the policy was trained on",
    )
    add("--problem", type=int, default=0, help="which problem of the task's test split (from 0)")
    add("--data", help="directory of the task's data, for tasks that read files")
    add = described.add_argument_group("decoding").add_argument
    add(
        "--policy",
        help=f"NAME:SETTING=VALUE,... or learned:DIR (names: {', '.join(policies.available())}); "
        f"default: {_DEFAULT_POLICY}, for DiffusionGemma {_DEFAULT_CANVAS_POLICY}; DIR is also the "
        "workdir of a training run",
    )
    add(
        "--gen_length",
        type=int,
        help="canvas length; default: what the policy was trained for, or a shipped model was made "
        f"for, else {_DEFAULT_LENGTH}",
    )
    add(
        "--block_length",
        type=int,
        help="block length; default: what the policy was trained for, or a shipped or block-causal "
        "model was made for, else gen_length, which is full diffusion",
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
    add("--seed", type=command_line.seed, default=0, help="seed of all draws; default: 0")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and computation")
    add("--quantization", choices=tuple(TYPES), help="one byte per weight of the layers' matrices")
    add = described.add_argument_group("output").add_argument
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
    add("--html", metavar="FILE", help="write the generation as a web page to step through")
    add("--json", action="store_true", help="print one JSON object per answer instead of text")
    return described


def fill_in(args: argparse.Namespace) -> None:
    """Gives arguments that are missing the values that the policy was trained for.

    Warns where others were given: a policy acts as its tables say only where it was trained.
    """
    made = _made_for(args.policy) if args.policy else None
    if made is not None:
        if args.model is None:
            args.model = made.model
        has_prompt = args.prompt is not None or args.messages is not None or args.chat
        if not has_prompt and args.task is None and args.model == made.model:
            args.task = made.task
        if args.model == made.model or args.model not in shipped_models():
            length = args.gen_length or made.gen_length
            block = length if made.block_length == made.gen_length else made.block_length
            args.gen_length = made.gen_length if args.gen_length is None else args.gen_length
            if args.block_length is None and length % block == 0:
                args.block_length = block
        here, given = settings(args), dict(notation.parse(args.policy).settings)
        different = [
            f"{name} {theirs} (here {ours})"
            for name, theirs, ours in (
                ("model", made.model, args.model),
                ("gen_length", made.gen_length, here.gen_length),
                ("block_length", made.block_length, here.block_length),
                ("distribution", made.distribution, given.get("distribution", made.distribution)),
            )
            if theirs != ours
        ]
        if different:
            logger.warning("The policy was trained for %s.", ", ".join(different))
    if args.model is None:
        raise ValueError(
            f"--model is missing; give one of {', '.join(shipped_models())}, a directory or a hub "
            "name (or a --policy that names its model)"
        )


def _made_for(text: str) -> MadeFor | None:
    """Where a learned policy was trained, or was calibrated for the forwards asked for."""
    spec = notation.parse(text)
    if spec.name != "learned" or not spec.target:
        return None
    directory, given = policies.policy_directory(spec.target), dict(spec.settings)
    if "nfe" not in given:
        return made_for(directory)
    known = load_calibrations(directory)
    name = given.get("calibration", next(iter(known)) if len(known) == 1 else "")
    found = known[name].environment if name in known else {}
    names = {"model": "denoiser"} | {name: name for name in _SHAPE}
    if not all(name in found for name in names.values()):
        return None
    return MadeFor(**{ours: found[theirs] for ours, theirs in names.items()})  # type: ignore[arg-type]


def check(args: argparse.Namespace) -> None:
    """Raises for all mistakes in the arguments that show before the model is loaded."""
    shape = settings(args)
    environment = {"denoiser": args.model, **shape.environment}
    policies.parse_policy(args.policy or _DEFAULT_POLICY, environment=environment)
    if args.html is not None and pathlib.Path(args.html).is_dir():
        raise ValueError(f"--html={args.html} is a directory; give the name of a file")
    if not 0 <= args.pace < 60:
        raise ValueError(f"--pace={args.pace} must be a number of seconds from 0 to below 60")


def problem(args: argparse.Namespace) -> Problem:
    """The problem that the arguments name."""
    if args.system is not None and not args.chat:
        raise ValueError("--system is for chats: add --chat (or put it into --messages)")
    if args.messages is not None:
        if args.prompt is not None or args.task is not None or args.chat:
            raise ValueError("--messages is the whole prompt: leave out --prompt, --task, --chat")
        return Problem(_read_messages(args.messages))
    message: Prompt | None = args.prompt
    if args.chat and args.prompt is not None:
        message = [*system_turn(args.system), {"role": "user", "content": args.prompt}]
    if args.task is None:
        if args.prompt is None and not args.chat:
            raise ValueError(
                "there is no prompt: give --prompt=TEXT, --task=NAME to pose one, or --chat to "
                "converse"
            )
        return Problem(message)
    task = tasks.parse(args.task, args.data)
    if args.prompt is not None:
        return Problem(message, task)
    source = task.source("test")
    if not 0 <= args.problem < len(source):
        raise ValueError(
            f"--problem={args.problem} does not exist; {args.task} has {len(source)} test problems"
        )
    example = source[args.problem]
    return Problem(task.prompt(example), task, example)


def writer(args: argparse.Namespace) -> Writer:
    """The model, loaded as the arguments ask."""
    directory = hub.local_directory(args.model)
    thinking = None if args.thinking is None else args.thinking == "on"
    if diffusion_gemma.is_model(directory):
        return _canvas_writer(args, directory, thinking)
    denoiser, params, tokenizer = load_model(
        str(directory), dtype=args.dtype, param_dtype=args.dtype, quantization=args.quantization
    )
    policy, shape = args.policy or _DEFAULT_POLICY, settings(args, denoiser.config, tokenizer)
    return MaskedWriter(
        denoiser, params, tokenizer, policy, shape, args.seed, thinking, name=args.model
    )


def _canvas_writer(
    args: argparse.Namespace, directory: pathlib.Path, thinking: bool | None
) -> CanvasWriter:
    for name, default in _MASKED_ONLY.items():
        if getattr(args, name) != default:
            raise ValueError(
                f"--{name}={getattr(args, name)} is for masked models; {args.model} is a "
                "diffusion_gemma, which has canvases and a temperature schedule of its own. Leave "
                "it out"
            )
    tokenizer = load_tokenizer(directory, needs_mask=False)
    loaded = diffusion_gemma.load(directory, dtype=args.dtype, param_dtype=args.dtype)
    config = loaded.model.config
    tokenizer.stop_ids = tuple(dict.fromkeys([tokenizer.eos_id, *config.eos_token_ids]))
    # Tokens of an answer at most, rounded up to whole canvases.
    shape = CanvasSettings(canvases=-(-settings(args).gen_length // config.canvas_length))
    policy = args.policy or _DEFAULT_CANVAS_POLICY
    return CanvasWriter(loaded, tokenizer, policy, shape, args.seed, thinking)


def settings(
    args: argparse.Namespace,
    config: DenoiserConfig | None = None,
    tokenizer: Tokenizer | None = None,
) -> RolloutSettings:
    """The rollout's settings; without the model, those that follow from the arguments alone."""
    length, block = _DEFAULT_LENGTH, 0
    if args.model in shipped_models():
        _, length, block = shipped_lengths(args.model)
    length = length if args.gen_length is None else args.gen_length
    cache = parse_cache(args.cache)
    stop_ids: tuple[int, ...] = ()
    sampling = Sampling(top_k=args.top_k, top_p=args.top_p)
    if config is not None:
        sampling = families.sampling(config.family, args.top_k, args.top_p)
        block = config.attention_block or block
        if cache is not None:
            cache.check_fits(config)
        if config.attention_block is not None and tokenizer is not None:
            # Block-causal models were not trained to predict tokens after the end of a text.
            stop_ids = tokenizer.stop_ids
    is_fitting = block and (length % block == 0 or (config and config.attention_block))
    block = block if is_fitting else length
    if args.block_length is not None:
        block = args.block_length
    return RolloutSettings(
        gen_length=length,
        block_length=block,
        temperature=args.temperature,
        record=args.html is not None,
        sampling=sampling,
        stop_ids=stop_ids,
        cache=cache,
    )


def _read_messages(file: str) -> list[dict[str, str]]:
    """A conversation from a JSON file; a `ValueError` if it is not a list of messages."""
    try:
        text = sys.stdin.read() if file == "-" else pathlib.Path(file).read_text("utf-8-sig")
        messages = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(arguments)
    command_line.set_up_logging()
    compilation.enable_cache()
    compilation.choose_flags()
    with command_line.clear_errors(args):
        _run(args)


def _run(args: argparse.Namespace) -> None:
    # All that can be wrong without the model is checked before the model is loaded.
    fill_in(args)
    asked = problem(args)
    check(args)
    model = writer(args)
    tokenizer, live, errors = model.tokenizer, None, Console(stderr=True)
    pages, turns = _Page(args, model), itertools.count()
    is_live = canvas.can_redraw(errors) and not args.json if args.live is None else args.live
    if is_live:
        live = canvas.LiveCanvas(
            tokenizer.pieces,
            errors,
            block_length=model.block_length,
            end_ids=tokenizer.stop_ids,
            pace=args.pace,
        )

    def answer(prompt: Prompt, pad_to: int = 1) -> str:
        try:
            given = model.answer(prompt, turn=next(turns), pad_to=pad_to, watch=live)
        except UnknownWords as error:
            if args.model not in shipped_models():
                raise
            task = tasks.parse(args.model)
            example = task.prompt(task.source("test")[0])
            raise ValueError(
                f"{error}. Such a model takes prompts as --prompt={example!r}"
            ) from None
        finally:
            if live is not None:
                live.close()
        score = asked.score(given.text)
        if args.html is not None:
            pages.add(given, score)
        if args.json:
            record = given.record() | {
                "seed": args.seed,
                "model": args.model,
                "policy": model.policy,
                "quantization": args.quantization,
            }
            record |= {} if score is None else {"score": score}
            sys.stdout.write(json.dumps(record) + "\n")
        else:
            _show(given, tokenizer, score, with_trace=args.trace, coloured=is_live)
        sys.stdout.flush()
        return given.text

    if asked.prompt is None:
        converse(args.system, lambda messages: answer(messages, _TURN_WIDTH))
    else:
        answer(asked.prompt)


class _Page:
    """The answers so far as a page (`--html`); in a conversation it grows with every turn."""

    def __init__(self, args: argparse.Namespace, writer: Writer) -> None:
        self._args, self._writer = args, writer
        self._problems: list[dict[str, Any]] = []

    def add(self, answer: Answer, score: float | None) -> None:
        """Writes the page with one more answer."""
        args, tokenizer = self._args, self._writer.tokenizer
        assert isinstance(answer.trajectory, Trajectory)  # Other models refuse --html.
        method, _, settings = self._writer.policy.partition(":")
        trace = traces.trace(
            answer.trajectory,
            0,
            tokenizer.pieces,
            method=method,
            settings=settings,
            text=answer.text,
            block_length=answer.settings.block_length,
            stop_ids=tokenizer.stop_ids,
            score=score,
            probability=answer.probability,
        )
        name = f"answer {len(self._problems) + 1}"
        self._problems.append(traces.problem(name, answer.prompt, [trace]))
        page.write_page(
            args.html,
            title=args.model,
            subtitle=f"policy {self._writer.policy}, canvas of {answer.settings.gen_length}, "
            f"seed {args.seed}",
            problems=self._problems,
            text="\n\n".join(problem["traces"][0]["text"] for problem in self._problems),
        )


def _show(
    answer: Answer, tokenizer: Tokenizer, score: float | None, *, with_trace: bool, coloured: bool
) -> None:
    """Writes the text, before it the canvas step by step if that is asked for."""
    console = Console()
    tokens, step_map = answer.trajectory.tokens[0].tolist(), np.asarray(answer.trajectory.step_map)
    pieces, has_colour = tokenizer.pieces(tokens), canvas.has_colour(console)
    if with_trace:
        block_length = answer.settings.block_length
        for line in canvas.trace(pieces, step_map[0], block_length=block_length, colour=has_colour):
            console.print(line, soft_wrap=True)
        console.print()
    # Special tokens are left out of the text, and so is everything after its end.
    stops = [place for place, token in enumerate(tokens) if token in tokenizer.stop_ids]
    kept = pieces[: min(stops, default=len(pieces))]
    if coloured and has_colour and "".join(kept) == answer.text:
        console.print(canvas.coloured(kept, step_map[0][: len(kept)]), soft_wrap=True)
    else:
        text = harmless(answer.text) if sys.stdout.isatty() else answer.text
        sys.stdout.write(text + "\n")
    summary = f"NFE {int(answer.trajectory.nfe[0])} for {answer.settings.gen_length} positions"
    if score is not None:
        summary += f"; score {score:g}"
    sys.stderr.write(summary + "\n")
