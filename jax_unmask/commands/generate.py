"""Fills canvases and prints them: `python -m jax_unmask.generate`.

With `--chat` and no prompt it converses: every line of standard input is a turn.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from jax_unmask import notation, policies, tasks
from jax_unmask.commands import command_line
from jax_unmask.denoisers import Tokenizer
from jax_unmask.denoisers.quantization import TYPES
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.generation import answers
from jax_unmask.generation.answers import Answer
from jax_unmask.generation.conversation import converse, system_turn
from jax_unmask.generation.decoding import Decoding, Prompt
from jax_unmask.generation.generator import Generator
from jax_unmask.report import canvas, page
from jax_unmask.rollout import RolloutSettings
from jax_unmask.runtime import compilation
from jax_unmask.runtime.files import local_path
from jax_unmask.runtime.terminal import harmless
from jax_unmask.settings import FlagError, naming
from jax_unmask.shipped import shipped_models
from jax_unmask.tasks.base import Drawn, Example, Task

_TURN_WIDTH = 64
"""In a conversation, prompts are padded to multiples of this: most turns then compile nothing."""


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

    def drawing(self, text: str) -> str:
        """Problem and answer as people draw them, for tasks that are drawn."""
        if self.example is None or not isinstance(self.task, Drawn):
            return ""
        return f"\n{self.task.render(self.example, text)}\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = command_line.Parser(
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
        f"default: {answers.UNIVERSAL_POLICY} for models that it was trained on, else "
        f"{policies.DEFAULT}, for DiffusionGemma {answers.DEFAULT_CANVAS_POLICY}; "
        "DIR is also the workdir of a training run",
    )
    add(
        "--gen_length",
        type=int,
        help="canvas length; default: what the policy was trained for, or a shipped model was made "
        f"for, else {answers.DEFAULT_LENGTH}",
    )
    add(
        "--block_length",
        type=int,
        help="block length; default: what the policy was trained for, or a shipped or block-causal "
        "model was made for, else gen_length, which is full diffusion",
    )
    add(
        "--cache",
        default=Decoding.cache,
        help="prefix, dual (full attention; approximate) or block (block-causal; exact), with "
        "settings as in dual:refresh_every=8,extra_tokens=16; default: %(default)s",
    )
    command_line.add_settings(add, RolloutSettings(), names=("temperature",))
    command_line.add_settings(add, Sampling())
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
    args.model, args.policy, fitted = answers.fitted(args.model, args.policy, decoding(args))
    args.gen_length, args.block_length = fitted.gen_length, fitted.block_length
    has_prompt = args.prompt is not None or args.messages is not None or args.chat
    made = answers.trained_for(args.policy)
    here = [each.task for each in made if each.model == args.model]
    if here and not has_prompt and args.task is None:
        args.task = here[0]


def check(args: argparse.Namespace, asked: Problem) -> None:
    """Raises for all mistakes in the arguments that show before the model is loaded."""
    known = answers.read(args.model)
    answers.check(args.model, args.policy, decoding(args), known)
    if known and asked.prompt is not None:
        key = "messages" if args.messages is not None else "task" if asked.example else "prompt"
        with naming(key, getattr(args, key)):
            answers.check_prompt(known, args.model, decoding(args), asked.prompt)
    if args.html is not None and local_path(args.html).is_dir():
        raise FlagError("html", args.html, "it is a directory", "Give the name of a file")
    if not 0 <= args.pace < 60:
        raise FlagError("pace", args.pace, "it is out of range", "Give 0 to below 60 seconds")


def problem(args: argparse.Namespace) -> Problem:
    """The problem that the arguments name."""
    if args.system is not None and not args.chat:
        remedy = "Add --chat, or put it into --messages"
        raise FlagError("system", args.system, "it is for chats", remedy)
    if args.messages is not None:
        if args.prompt is not None or args.task is not None or args.chat:
            remedy = "Leave out --prompt, --task, --chat"
            raise FlagError("messages", args.messages, "it is the whole prompt", remedy)
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
    task = command_line.parse_task(args)
    if args.prompt is not None:
        return Problem(message, task)
    with command_line.naming_task(args):
        source = task.source("test")
    if not 0 <= args.problem < len(source):
        remedy = f"{args.task} has {len(source)} test problems, from 0 on"
        raise FlagError("problem", args.problem, "it does not exist", remedy)
    example = source[args.problem]
    return Problem(task.prompt(example), task, example)


def decoding(args: argparse.Namespace) -> Decoding:
    """The settings of decoding that the arguments give."""
    names = {field.name for field in dataclasses.fields(Decoding)} - {"thinking"}
    thinking = None if args.thinking is None else args.thinking == "on"
    return Decoding(**{name: getattr(args, name) for name in names}, thinking=thinking)


def _read_messages(file: str) -> list[dict[str, str]]:
    """A conversation from a JSON file; a `ValueError` if it is not a list of messages."""
    try:
        with naming("messages", file, "Give a file that there is, or - for standard input"):
            text = sys.stdin.read() if file == "-" else pathlib.Path(file).read_text("utf-8-sig")
        messages = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FlagError("messages", file, f"it is not valid JSON: {error}", "Correct it") from error
    well_formed = isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )
    if not well_formed or not messages:
        remedy = 'Let it hold a list such as [{"role": "user", "content": "..."}]'
        raise FlagError("messages", file, "it holds something else", remedy)
    return messages


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command_line.parsed(parser(), arguments) as args:
        _run(args)


def _run(args: argparse.Namespace) -> None:
    # All that can be wrong without the model is checked before the model is loaded.
    fill_in(args)
    asked = problem(args)
    check(args, asked)
    generator = Generator(answers.load(args.model, args.policy, decoding(args)), seed=args.seed)
    model = generator.writer
    tokenizer, live, errors = model.tokenizer, None, Console(stderr=True)
    if args.html is not None and not isinstance(model, answers.MaskedWriter):
        why = f"it is for masked models, and {args.model} is none"
        raise FlagError("html", args.html, why, "Leave it out")
    pages, turns = _Page(args), itertools.count()
    compiling: list[contextlib.AbstractContextManager[None]] = [
        compilation.announced(f"the first answer with {args.model}")
    ]
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
        if compiling:  # What is wrong with the prompt shows before.
            answers.encode(model, prompt)
        try:
            with compiling.pop() if compiling else contextlib.nullcontext():
                (given,) = generator.generate(
                    [prompt],
                    turn=next(turns),
                    record=args.html is not None,
                    pad_to=pad_to,
                    watch=live,
                )
        finally:
            if live is not None:
                live.close()
        score, drawing = asked.score(given.text), asked.drawing(given.text)
        if args.html is not None:
            pages.add(given, score, drawing.strip("\n"))
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
            sys.stderr.write(drawing)
        sys.stdout.flush()
        return given.text

    if asked.prompt is None:
        converse(args.system, lambda messages: answer(messages, _TURN_WIDTH))
    else:
        answer(asked.prompt)


class _Page:
    """The answers so far as a page (`--html`); in a conversation it grows with every turn."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._problems: list[dict[str, Any]] = []

    def add(self, answer: Answer, score: float | None, drawing: str) -> None:
        """Writes the page with one more answer."""
        name = f"answer {len(self._problems) + 1}"
        self._problems.append(answer.view(name, score, drawing))
        page.write_page(
            self._args.html,
            title=self._args.model,
            subtitle=f"policy {answer.policy}, canvas of {answer.settings.gen_length}, "
            f"seed {self._args.seed}",
            problems=self._problems,
            text="\n\n".join(problem["traces"][0]["text"] for problem in self._problems),
        )


def counted(answer: Answer) -> str:
    """The forwards that an answer took, and those that were asked for, as text."""
    asked = dict(notation.parse(answer.policy).settings).get("nfe")
    told = "" if asked is None else f" (asked for {asked}, on average over prompts)"
    return f"NFE {answer.nfe}{told} for {answer.settings.gen_length} positions"


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
    summary = counted(answer)
    if score is not None:
        summary += f"; score {score:g}"
    sys.stderr.write(summary + "\n")
