"""The canvas as text: lines per step, and frames of a terminal."""

import io

import numpy as np
import pytest
from rich.console import Console

from jax_unmask.report import canvas
from jax_unmask.report.canvas import END, LiveCanvas

PIECES = ["a", " b", "\n", "d"]
STEP_MAP = np.array([1, 0, 0, -1])
WORDS = ["<eos>", "one", " two", "\n", "\t", "界", "e\u0301", "<mask>"]
# The canvas and the step map after each of three steps.
STEPS = [
    ([1, 7, 7, 7, 7, 7], [0, -1, -1, -1, -1, -1]),
    ([1, 7, 3, 5, 7, 7], [0, -1, 1, 1, -1, -1]),
    ([1, 2, 3, 5, 0, 0], [0, 2, 1, 1, 2, 2]),
]


def test_plain_lines_bracket_what_a_step_filled():
    lines = canvas.trace(PIECES, STEP_MAP, block_length=2, colour=False)
    assert [line.plain for line in lines] == ["1 +2 _[ b]|[\\n]_", "2 +1 [a] b|\\n_"]


def test_coloured_lines_hold_the_same_text():
    first, second = canvas.trace(PIECES, STEP_MAP, block_length=2, colour=True)
    assert (first.plain, second.plain) == ("1 +2 _ b|\\n_", "2 +1 a b|\\n_")
    assert "bold underline color(63)" in [span.style for span in first.spans]


def test_a_terminal_gets_no_control_characters():
    shown = canvas.coloured(["a\x1b]0;", "t\x07\x9b2J", "\u202eb\n"], np.zeros(3, int))
    assert shown.plain == "a\\x1b]0;t\\x07\\x9b2J\\u202eb\n"


def test_nothing_filled_is_no_line():
    assert not list(canvas.trace(PIECES, np.full(4, -1), block_length=4, colour=False))


@pytest.mark.parametrize(
    ("is_terminal", "environment", "colour"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colours_only_where_wanted(is_terminal, environment, colour):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, _environ=environment)
    assert canvas.has_colour(console) is colour


def play(*, width=80, height=24, steps=STEPS, **settings):
    """The frames of a terminal, without control codes; and all that was written."""
    frames = []

    class Live(LiveCanvas):
        def _frame(self, *arguments):
            frame = super()._frame(*arguments)
            paper = Console(file=io.StringIO(), width=width)
            paper.print(frame)
            frames.append(paper.file.getvalue().splitlines())
            return frame

    environment = {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": str(height)}
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, _environ=environment)
    settings = {"block_length": 2, "end_ids": (0,)} | settings
    live = Live(lambda ids: [WORDS[token] for token in ids], console, **settings)
    for tokens, step_map in steps:
        live(np.array([tokens]), np.array([step_map]))
    live.close()
    return frames, stream.getvalue()


def test_frames_of_a_terminal_read_as_the_text_will():
    frames, written = play()
    assert frames == [
        ["step 1, 1 of 6 filled", "one_____"],
        ["step 2, 3 of 6 filled", "one_", "界__"],
        ["step 3, 6 of 6 filled", "one two", f"界{END}{END}"],
    ]
    assert written.endswith("\x1b[1A\x1b[2K")  # Nothing stays.


def test_frames_fit_the_terminal():
    assert play(width=4)[0][-1] == ["step", "one ", "two", f"界{END}{END}"]
    # What was filled last must be seen.
    assert play(width=4, height=3)[0][-1] == ["step", f"界{END}{END}"]


def test_a_line_per_step_where_nothing_can_be_redrawn():
    stream = io.StringIO()
    live = LiveCanvas(
        lambda ids: [WORDS[token] for token in ids], Console(file=stream), block_length=2
    )
    for tokens, step_map in STEPS:
        live(np.array([tokens]), np.array([step_map]))
    live.close()
    assert stream.getvalue().splitlines() == [
        "1 +1 [one]_|__|__",
        "2 +2 one_|[\\n][界]|__",
        "3 +3 one[ two]|\\n界|[<eos>][<eos>]",
    ]


def test_pace_holds_every_step(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    play(pace=0.5)
    assert waited == [0.5] * 3
