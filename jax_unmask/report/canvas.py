"""The canvas as text, step by step, for a terminal or a log file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from jaxtyping import Int

HOLE = "_"
"""What stands for a position that is not filled yet."""

_RESET, _DIM, _NEW = "\x1b[0m", "\x1b[2m", "\x1b[1;4m"
# Colours 256-palette terminals have, dark to bright, from blue (early) to yellow (late). Viridis is
# readable on light and dark backgrounds alike only in its middle, so the ends are left out.
_RAMP = (63, 33, 38, 36, 35, 71, 106, 142, 178, 214)


def has_colour(stream: TextIO) -> bool:
    """Whether to colour: a terminal that is not dumb, and no NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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
    digits = len(str(last + 1))
    lines = []
    for step in range(last + 1):
        text = canvas(pieces, step_map, step, block_length=block_length, colour=colour)
        filled = int((step_map == step).sum())
        lines.append(f"{step + 1:>{digits}} +{filled:<{len(str(len(pieces)))}} {text}")
    return lines


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
            parts.append(f"{_DIM}{HOLE}{_RESET}" if colour else HOLE)
        elif not colour:
            parts.append(f"[{shown}]" if when == step else shown)
        else:
            parts.append(f"{_colour(when, last)}{_NEW if when == step else ''}{shown}{_RESET}")
    return "".join(parts)


def one_line(text: str) -> str:
    """Line ends and other control characters made visible."""
    return "".join(
        repr(char)[1:-1] if not char.isprintable() and char != " " else char for char in text
    )


def _colour(step: int, last: int) -> str:
    index = 0 if last <= 0 else round(step / last * (len(_RAMP) - 1))
    return f"\x1b[38;5;{_RAMP[index]}m"
