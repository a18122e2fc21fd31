"""The canvas while it is filled: frames of a terminal, played back, and lines elsewhere."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from jax_unmask.report.live import END, LiveCanvas

WORDS = ["<eos>", "one", " two", "\n", "\t", "界", "e\u0301", "<mask>"]
MASK = 7
# The canvas and the step map after each of three steps.
STEPS = [
    ([1, 7, 7, 7, 7, 7], [0, -1, -1, -1, -1, -1]),
    ([1, 7, 3, 5, 7, 7], [0, -1, 1, 1, -1, -1]),
    ([1, 2, 3, 5, 0, 0], [0, 2, 1, 1, 2, 2]),
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screens(written: str) -> list[list[str]]:
    """What a terminal shows after each frame: the control codes that the frames use, obeyed."""
    lines: list[str] = []
    shown = []
    for frame in re.split(r"(?<=\n)(?=\r|\x1b\[2mstep|step)", written):
        if match := re.match(r"\r\x1b\[(\d+)A\x1b\[J", frame):
            lines = lines[: len(lines) - int(match[1])]
            frame = frame[match.end() :]
        lines = lines + re.sub(r"\x1b\[[\d;]*m", "", frame).splitlines()
        shown.append(lines)
    return shown


def play(stream, size=(80, 24), **settings):
    live = LiveCanvas(
        lambda ids: [WORDS[token] for token in ids],
        stream,
        block_length=2,
        end_ids=(0,),
        size=lambda: size,
        **settings,
    )
    for tokens, step_map in STEPS:
        live(np.array([tokens]), np.array([step_map]))
    return live


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


class TestTerminal:
    def test_frames_replace_each_other(self):
        stream = Terminal()
        live = play(stream)
        assert screens(stream.getvalue()) == [
            ["step 1, 1 of 6 filled", "one_____"],
            ["step 2, 3 of 6 filled", "one_", "界__"],
            ["step 3, 6 of 6 filled", "one two", f"界{END}{END}"],
        ]
        live.close()
        assert screens(stream.getvalue())[-1] == []

    def test_colours_go_by_step_and_the_last_one_is_underlined(self):
        stream = Terminal()
        play(stream)
        last = stream.getvalue().rpartition("\x1b[J")[2]
        assert "\x1b[38;5;63mone\x1b[0m" in last
        assert "\x1b[38;5;214m\x1b[1;4m two\x1b[0m" in last

    def test_without_colour_there_are_no_colour_codes(self, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        stream = Terminal()
        play(stream)
        assert not re.search(r"\x1b\[[\d;]*m", stream.getvalue())
        assert screens(stream.getvalue())[-1] == [
            "step 3, 6 of 6 filled",
            "one two",
            f"界{END}{END}",
        ]

    def test_lines_are_no_longer_than_the_terminal(self):
        stream = Terminal()
        play(stream, size=(4, 24))
        assert screens(stream.getvalue())[-1] == ["step", "one ", "two", f"界{END}{END}"]

    def test_frames_are_no_higher_than_the_terminal(self):
        stream = Terminal()
        play(stream, size=(4, 3))
        assert screens(stream.getvalue())[-1] == ["step", f"界{END}{END}"]

    def test_accents_take_no_column_and_tabs_take_four(self):
        stream = Terminal()
        live = LiveCanvas(
            lambda ids: [WORDS[token] for token in ids],
            stream,
            block_length=2,
            size=lambda: (5, 9),
        )
        live(np.array([[6, 4, 6, 4]]), np.array([[0, 0, 0, 0]]))
        assert screens(stream.getvalue())[-1][1:] == ["e\u0301    ", "e\u0301    "]


@pytest.mark.parametrize("terminal", [io.StringIO, Terminal])
def test_a_line_per_step_where_nothing_can_be_redrawn(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = terminal()
    live = play(stream)
    live.close()
    assert stream.getvalue().splitlines() == [
        "1 +1 [one]_|__|__",
        "2 +2 one_|[\\n][界]|__",
        "3 +3 one[ two]|\\n界|[<eos>][<eos>]",
    ]


def test_pace_holds_every_step(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    play(io.StringIO(), pace=0.5)
    assert waited == [0.5] * 3
