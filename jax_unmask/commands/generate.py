"""Fills canvases and prints them: `python -m jax_unmask.generate --model=sudoku --task=sudoku`.

With `--chat` and no prompt it converses: every line of standard input is a turn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_unmask.commands import command_line
from jax_unmask.denoisers import Tokenizer
from jax_unmask.generation import arguments as asked
from jax_unmask.generation.answers import Answer, Prompt, Writer, generate
from jax_unmask.generation.arguments import parser
from jax_unmask.generation.conversation import converse
from jax_unmask.report import canvas, page, traces
from jax_unmask.report.live import LiveCanvas
from jax_unmask.rollout import Trajectory
from jax_unmask.runtime import compilation

__all__ = ["generate", "main", "parser"]

_TURN_WIDTH = 64
"""In a conversation, prompts are padded to multiples of this: most turns then compile nothing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(arguments)
    command_line.set_up_logging()
    compilation.enable_cache()
    with command_line.clear_errors():
        try:
            _run(args)
        except KeyboardInterrupt:
            sys.exit(130)  # As shells report it.


def _run(args: argparse.Namespace) -> None:
    # All that can be wrong without the model is checked before the model is loaded.
    problem = asked.problem(args)
    asked.check(args)
    writer = asked.writer(args)
    tokenizer, live = writer.tokenizer, None
    pages = _Page(args, writer)
    is_live = canvas.can_redraw(sys.stderr) and not args.json if args.live is None else args.live
    if is_live:
        live = LiveCanvas(
            tokenizer.pieces,
            sys.stderr,
            block_length=writer.block_length,
            end_ids=tokenizer.stop_ids,
            pace=args.pace,
        )

    def answer(prompt: Prompt, pad_to: int = 1) -> str:
        try:
            given = writer.answer(prompt, pad_to=pad_to, watch=live)
        finally:
            if live is not None:
                live.close()
        score = problem.score(given.text)
        if args.html is not None:
            pages.add(given, score)
        if args.json:
            record = given.record() | {
                "seed": args.seed,
                "model": args.model,
                "policy": writer.policy,
                "quantization": args.quantization,
            }
            record |= {} if score is None else {"score": score}
            sys.stdout.write(json.dumps(record) + "\n")
        else:
            _show(given, tokenizer, score, with_trace=args.trace, coloured=is_live)
        sys.stdout.flush()
        return given.text

    if problem.prompt is None:
        converse(args.system, lambda messages: answer(messages, _TURN_WIDTH))
    else:
        answer(problem.prompt)


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
    tokens, step_map = answer.trajectory.tokens[0].tolist(), np.asarray(answer.trajectory.step_map)
    pieces, colour = tokenizer.pieces(tokens), canvas.has_colour(sys.stdout)
    if with_trace:
        lines = canvas.trace(
            pieces, step_map[0], block_length=answer.settings.block_length, colour=colour
        )
        sys.stdout.write("\n".join(lines) + "\n\n")
    text = answer.text
    if coloured and colour:
        # Special tokens are left out of the text, and so is everything behind its end.
        stops = [place for place, token in enumerate(tokens) if token in tokenizer.stop_ids]
        kept = pieces[: min(stops, default=len(pieces))]
        if "".join(kept) == text:
            text = canvas.coloured(kept, step_map[0][: len(kept)])
    sys.stdout.write(text + "\n")
    summary = f"NFE {int(answer.trajectory.nfe[0])} for {answer.settings.gen_length} positions"
    if score is not None:
        summary += f"; score {score:g}"
    sys.stderr.write(summary + "\n")
