"""The canvas while it is being filled: redrawn in place in a terminal, else a line per step."""

from __future__ import annotations

import shutil
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import TextIO

import numpy as np
from jaxtyping import Int

from jax_unmask.report import canvas as pages

END = "\u220e"
"""Character of a token that ends the text, which may fill most of a canvas."""

_UP, _CLEAR_DOWN = "\x1b[{}A", "\x1b[J"
_TAB = 4

Cell = tuple[str, str]
"""Text without control characters, and the ANSI codes that precede it ("" for none)."""


class LiveCanvas:
    """Draws the first row of a rollout after each of its steps; a `rollout.Watcher`.

    In a terminal the text is drawn over itself, as it will read, line ends included; colours go by
    step, and what the last step wrote is underlined. On another stream (a file, a pipe, a dumb
    terminal) every step is one line as in `canvas.trace`, without any control codes.
    """

    def __init__(
        self,
        pieces: Callable[[Sequence[int]], list[str]],
        stream: TextIO,
        *,
        block_length: int,
        end_ids: Sequence[int] = (),
        pace: float = 0.0,
        size: Callable[[], tuple[int, int]] = shutil.get_terminal_size,
    ) -> None:
        """Draws nothing yet.

        Args:
            pieces: text of each token of a canvas.
            stream: where to draw.
            block_length: length of a block; plain lines mark where blocks end.
            end_ids: tokens that end a text.
            pace: seconds that each step is shown at least. The rollout waits for it.
            size: columns and lines of the terminal.
        """
        self._pieces = pieces
        self._stream = stream
        self._block_length = block_length
        self._end_ids = frozenset(end_ids)
        self._pace = pace
        self._size = size
        self._redraws = pages.can_redraw(stream)
        self._colour = pages.has_colour(stream)
        self._height = 0

    def __call__(self, tokens: Int[np.ndarray, "B L"], step_map: Int[np.ndarray, "B L"]) -> None:
        """Shows the canvas after a step."""
        row, steps = np.asarray(tokens[0]), np.asarray(step_map[0])
        pieces = self._pieces(row.tolist())
        if self._redraws:
            self._draw(self._frame(pieces, row, steps))
        else:
            step = int(steps.max(initial=-1))
            text = pages.line(
                pieces, steps, step, len(row) - 1, block_length=self._block_length, colour=False
            )
            self._stream.write(text + "\n")
        self._stream.flush()
        if self._pace > 0:
            time.sleep(self._pace)

    def close(self) -> None:
        """Removes what was drawn over itself; lines stay."""
        self._draw([])
        self._stream.flush()

    def _draw(self, lines: Sequence[str]) -> None:
        if self._height:
            self._stream.write(f"\r{_UP.format(self._height)}{_CLEAR_DOWN}")
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._height = len(lines)

    def _frame(
        self, pieces: Sequence[str], tokens: Int[np.ndarray, " L"], steps: Int[np.ndarray, " L"]
    ) -> list[str]:
        """The lines of a frame: a heading, then as much of the canvas as fits the terminal."""
        last, columns, rows = int(steps.max(initial=-1)), *self._size()
        cells = [
            self._cell(piece, int(token), int(when), last)
            for piece, token, when in zip(pieces, tokens, steps, strict=True)
        ]
        heading = f"step {last + 1}, {int((steps >= 0).sum())} of {len(tokens)} filled"[:columns]
        lines, places = _wrap(cells, max(columns, 2))
        # Shows the lines up to a few after the last token that was filled, so that changes are
        # visible.
        filled = np.flatnonzero(steps >= 0)
        until = min(places[filled[-1]] + 3 if filled.size else 3, len(lines))
        room = max(rows - 2, 1)
        dim = (pages.DIM, pages.RESET) if self._colour else ("", "")
        return [f"{dim[0]}{heading}{dim[1]}", *lines[max(until - room, 0) : until]]

    def _cell(self, piece: str, token: int, when: int, last: int) -> Cell:
        if when < 0:
            return pages.HOLE, pages.DIM if self._colour else ""
        shown = END if token in self._end_ids else piece
        if not self._colour:
            return shown, ""
        return shown, pages.colour_of(when, last) + (pages.NEW if when == last else "")


def _wrap(cells: Sequence[Cell], columns: int) -> tuple[list[str], list[int]]:
    """Breaks cells into lines of at most `columns` columns.

    Returns:
        (lines, the number of the line that each cell ends on).
    """
    lines, places, used = [""], [], 0
    for text, style in cells:
        written = ""
        for char in text:
            if char == "\n":
                lines[-1] += _styled(written, style)
                lines.append("")
                written, used = "", 0
                continue
            shown = " " * _TAB if char == "\t" else pages.one_line(char)
            width = sum(map(_columns, shown))
            if used + width > columns:
                lines[-1] += _styled(written, style)
                lines.append("")
                written, used = "", 0
            written, used = written + shown, used + width
        lines[-1] += _styled(written, style)
        places.append(len(lines) - 1)
    return lines, places


def _styled(text: str, style: str) -> str:
    return f"{style}{text}{pages.RESET}" if text and style else text


def _columns(char: str) -> int:
    """Columns that a terminal gives to a character."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
