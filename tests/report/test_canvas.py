"""The canvas as text."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from jax_unmask.report import canvas

PIECES = ["a", " b", "\n", "d"]
STEP_MAP = np.array([1, 0, 0, -1])


def test_plain_lines_bracket_what_a_step_filled():
    assert canvas.trace(PIECES, STEP_MAP, block_length=2, colour=False) == [
        "1 +2 _[ b]|[\\n]_",
        "2 +1 [a] b|\\n_",
    ]


def test_coloured_lines_hold_the_same_text():
    lines = canvas.trace(PIECES, STEP_MAP, block_length=2, colour=True)
    assert "\x1b[38;5;63m" in lines[0]
    stripped = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    assert stripped == ["1 +2 _ b|\\n_", "2 +1 a b|\\n_"]


def test_nothing_filled_is_no_line():
    assert canvas.trace(PIECES, np.full(4, -1), block_length=4, colour=False) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colours_only_where_wanted(monkeypatch, stream, environment, expected):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert canvas.has_colour(stream) is expected
