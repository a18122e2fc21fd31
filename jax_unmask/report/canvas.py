"""The canvas as text: step by step, as it will read, and live while it is being filled."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from jax_unmask.runtime.terminal import harmless

HOLE = "_"
"""Stands for a position that is not filled yet."""
END = "\u220e"
"""Stands for a token that ends the text, in the live canvas: many of their names say nothing."""

# Colours of the palette of 256, dark to bright, from blue (early) to yellow (late). Viridis is
# readable on light and dark backgrounds alike only in its middle, so the ends are left out.
_RAMP = (63, 33, 38, 36, 35, 71, 106, 142, 178, 214)


def trace(
    pieces: Sequence[str], step_map: Int[np.ndarray, " L"], *, block_length: int, colour: bool
) -> Iterator[Text]:
    """Yields one line per step: the canvas after it; what the step filled stands out.

    Args:
        pieces: text of each position's final token.
        step_map: step at which each position was filled, -1 if never.
        block_length: blocks are set apart by a bar.
        colour: tokens have the colour of their step; otherwise new tokens stand in brackets.

    >>> [line.plain for line in trace("abc", np.array([1, 0, -1]), block_length=2, colour=False)]
    ['1 +1 _[b]|_', '2 +1 [a]b|_']
    """
    last = int(step_map.max(initial=-1))
    for step in range(last + 1):
        yield _line(pieces, step_map, step, last, block_length, colour)


def _line(
    pieces: Sequence[str],
    step_map: Int[np.ndarray, " L"],
    step: int,
    last: int,
    block_length: int,
    colour: bool,
) -> Text:
    """The line of one step out of 0 .. last: its number from 1, how many it filled, the canvas."""
    filled, width = int((step_map == step).sum()), len(str(len(pieces)))
    line = Text(f"{step + 1:>{len(str(last + 1))}} +{filled:<{width}} ")
    for position, (piece, when) in enumerate(zip(pieces, step_map.tolist(), strict=True)):
        if position and position % block_length == 0:
            line.append("|")
        shown = _printable(piece)
        if not 0 <= when <= step:
            line.append(HOLE, "dim")
        elif colour:
            line.append(shown, _style(when, int(step_map.max()), is_new=when == step))
        else:
            line.append(f"[{shown}]" if when == step else shown)
    return line


def coloured(pieces: Sequence[str], step_map: Int[np.ndarray, " L"]) -> Text:
    """The text of the filled positions, each token in the colour of its step."""
    last = int(step_map.max(initial=-1))
    filled = ((piece, when) for piece, when in zip(pieces, step_map.tolist(), strict=True))
    return Text.assemble(
        *((harmless(piece), _style(when, last)) for piece, when in filled if when >= 0)
    )


class LiveCanvas:
    """Draws the first row of a rollout after each of its steps; a `rollout.Watcher`.

    In a terminal the text is drawn over itself, as it will read, line ends included; colours go by
    step, and what the last step filled is underlined. On another stream (a file, a pipe, a dumb
    terminal) every step is one line, as in `trace`.

    Args:
        pieces: text of each token of a canvas.
        console: where to draw.
        block_length: length of a block; plain lines mark where blocks end.
        end_ids: tokens that end a text.
        pace: seconds that each step is shown at least. The rollout waits for it.
    """

    def __init__(
        self,
        pieces: Callable[[Sequence[int]], list[str]],
        console: Console,
        *,
        block_length: int,
        end_ids: Sequence[int] = (),
        pace: float = 0.0,
    ) -> None:
        self._pieces, self._console = pieces, console
        self._block_length, self._end_ids, self._pace = block_length, frozenset(end_ids), pace
        self._live: Live | None = None

    def __call__(self, tokens: Int[np.ndarray, "B L"], step_map: Int[np.ndarray, "B L"]) -> None:
        """Shows the canvas after a step."""
        row, steps = np.asarray(tokens[0]), np.asarray(step_map[0])
        pieces = self._pieces(row.tolist())
        if can_redraw(self._console):
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(self._frame(pieces, row, steps), refresh=True)
        else:
            step = int(steps.max(initial=-1))
            line = _line(pieces, steps, step, len(row) - 1, self._block_length, colour=False)
            self._console.print(line, soft_wrap=True)
        if self._pace > 0:
            time.sleep(self._pace)

    def close(self) -> None:
        """Removes what was drawn over itself; lines stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _frame(
        self, pieces: Sequence[str], tokens: Int[np.ndarray, " L"], steps: Int[np.ndarray, " L"]
    ) -> Group:
        """A heading, then as much of the canvas as fits the terminal."""
        last, text, written = int(steps.max(initial=-1)), Text(tab_size=4), 0
        for piece, token, when in zip(pieces, tokens.tolist(), steps.tolist(), strict=True):
            if when < 0:
                text.append(HOLE, "dim")
                continue
            shown = END if token in self._end_ids else _printable(piece, keep="\n\t")
            text.append(shown, _style(when, last, is_new=when == last))
            written = len(text)
        # The newest tokens must be seen: the lines up to two after the last filled position.
        wrap = {"console": self._console, "width": self._console.width, "overflow": "fold"}
        lines = text.wrap(**wrap)  # type: ignore[arg-type]
        until = len(text[:written].wrap(**wrap)) + 2  # type: ignore[arg-type]
        room = max(self._console.height - 2, 1)
        shown_lines = lines[: min(until, len(lines))][-room:]
        heading = f"step {last + 1}, {int((steps >= 0).sum())} of {len(tokens)} filled"
        return Group(Text(heading, "dim", no_wrap=True, overflow="crop"), *shown_lines)


def can_redraw(console: Console) -> bool:
    """Whether a console can draw over what it wrote: a terminal that is not dumb."""
    return console.is_terminal and not console.is_dumb_terminal


def has_colour(console: Console) -> bool:
    """Whether a console shows colours; $NO_COLOR switches them off (https://no-color.org)."""
    return can_redraw(console) and console.color_system is not None and not console.no_color


def _printable(text: str, keep: str = " ") -> str:
    """The text with line ends and other control characters made visible, but for some."""
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text
    )


def _style(step: int, last: int, *, is_new: bool = False) -> str:
    """The style of a token that was filled at a step out of 0 .. last."""
    index = 0 if last <= 0 else round(step / last * (len(_RAMP) - 1))
    return f"{'bold underline ' if is_new else ''}color({_RAMP[index]})"
