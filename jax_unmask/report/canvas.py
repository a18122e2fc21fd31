"""The canvas as text, step by step, for a terminal or a log file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from jaxtyping import Int

HOLE = "_"
"""Character of a position that is not filled yet."""

RESET, DIM, NEW = "\x1b[0m", "\x1b[2m", "\x1b[1;4m"
# Colours 256-palette terminals have, dark to bright, from blue (early) to yellow (late). Viridis is
# readable on light and dark backgrounds alike only in its middle, so the ends are left out.
_RAMP = (63, 33, 38, 36, 35, 71, 106, 142, 178, 214)


def has_colour(stream: TextIO) -> bool:
    """Whether to colour: a terminal that is not dumb, and no NO_COLOR (https://no-color.org)."""
    return can_redraw(stream) and not os.environ.get("NO_COLOR")


def can_redraw(stream: TextIO) -> bool:
    """Whether what was written can be drawn over: a terminal that is not dumb."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def trace(
    pieces: Sequence[str],
    step_map: Int[np.ndarray, " L"],
    *,
    block_length: int,
    colour: bool,
) -> list[str]:
    """One line per step: the canvas after it; what the step filled stands out.

    Args:
        pieces: text of each position's final token.
        step_map: step at which each position was filled, -1 if never.
        block_length: blocks are set apart by a bar.
        colour: colour tokens by their step (ANSI); otherwise new tokens stand in brackets.
    """
    last = int(step_map.max(initial=-1))
    return [
        line(pieces, step_map, step, last, block_length=block_length, colour=colour)
        for step in range(last + 1)
    ]


def line(
    pieces: Sequence[str],
    step_map: Int[np.ndarray, " L"],
    step: int,
    last: int,
    *,
    block_length: int,
    colour: bool,
) -> str:
    """The line of one step: its number (from 1), how many positions it filled, and the canvas.

    Args:
        pieces: text of each position's token.
        step_map: step at which each position was filled, -1 if not yet.
        step: the step.
        last: the last step that there can be; decides about the width of the numbers.
        block_length: blocks are set apart by a bar.
        colour: see `trace`.
    """
    text = canvas(pieces, step_map, step, block_length=block_length, colour=colour)
    filled = int((step_map == step).sum())
    return f"{step + 1:>{len(str(last + 1))}} +{filled:<{len(str(len(pieces)))}} {text}"


def canvas(
    pieces: Sequence[str],
    step_map: Int[np.ndarray, " L"],
    step: int,
    *,
    block_length: int,
    colour: bool,
) -> str:
    """The canvas after a step, on one line."""
    last = int(step_map.max(initial=-1))
    parts = []
    for position, (piece, when) in enumerate(zip(pieces, step_map.tolist(), strict=True)):
        if position and position % block_length == 0:
            parts.append("|")
        shown = one_line(piece)
        if not 0 <= when <= step:
            parts.append(f"{DIM}{HOLE}{RESET}" if colour else HOLE)
        elif not colour:
            parts.append(f"[{shown}]" if when == step else shown)
        else:
            parts.append(f"{colour_of(when, last)}{NEW if when == step else ''}{shown}{RESET}")
    return "".join(parts)


def coloured(pieces: Sequence[str], step_map: Int[np.ndarray, " L"]) -> str:
    """The text of the filled positions, each token in the colour of its step (ANSI)."""
    last = int(step_map.max(initial=-1))
    return "".join(
        f"{colour_of(when, last)}{piece}{RESET}"
        for piece, when in zip(pieces, step_map.tolist(), strict=True)
        if when >= 0 and piece
    )


def one_line(text: str) -> str:
    """Line ends and other control characters made visible."""
    return "".join(
        repr(char)[1:-1] if not char.isprintable() and char != " " else char for char in text
    )


def colour_of(step: int, last: int) -> str:
    """The ANSI code that starts the colour of a step out of 0 .. last."""
    index = 0 if last <= 0 else round(step / last * (len(_RAMP) - 1))
    return f"\x1b[38;5;{_RAMP[index]}m"
