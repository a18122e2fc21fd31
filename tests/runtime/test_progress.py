from __future__ import annotations

import io

import pytest

from jax_unmask.runtime.progress import Progress, Timer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_it_writes_a_line_now_and_then():
    clock, stream = Clock(), io.StringIO()
    with Progress(
        100, initial=20, title="train", seconds_per_line=10, stream=stream, clock=clock
    ) as bar:
        for step in range(21, 61):
            clock.now += 1
            bar.update(step, {"reward": 0.123456})
    lines = stream.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "train 21/100",
        "train 31/100",
        "train 41/100",
        "train 51/100",
    ]
    # 31 steps in 31 seconds by this process; the 20 from before the resume don't count.
    assert lines[-1] == "train 51/100 | 1 steps/s | 0:31 elapsed, 0:49 left | reward 0.1235"


def test_the_last_step_is_always_written():
    clock, stream = Clock(), io.StringIO()
    bar = Progress(2, stream=stream, clock=clock)
    bar.update(1)
    clock.now += 0.5
    bar.update(2)
    assert [line.split(" | ")[0] for line in stream.getvalue().splitlines()] == ["1/2", "2/2"]


def test_hours_are_shown():
    clock, stream = Clock(), io.StringIO()
    bar = Progress(3, stream=stream, clock=clock)
    clock.now += 3723
    bar.update(1)
    assert "1:02:03 elapsed, 2:04:06 left" in stream.getvalue()


def test_on_a_terminal_it_is_a_bar():
    stream = Terminal()
    with Progress(10, initial=4, title="train", stream=stream) as bar:
        bar.update(10, {"nfe": 3})
    assert "10/10" in stream.getvalue()
    assert "nfe=3" in stream.getvalue()


def test_other_processes_show_nothing(monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    stream = Terminal()
    with Progress(10, stream=stream) as bar:
        bar.update(10)
    assert stream.getvalue() == ""


def test_timer_reports_shares_and_starts_over():
    clock = Clock()
    timer = Timer(clock)
    for _ in range(2):
        with timer.measure("rollout"):
            clock.now += 3
        with timer.measure("update"):
            clock.now += 1
    clock.now += 2
    report = timer.report()
    assert report == pytest.approx(
        {
            "seconds/total": 10,
            "seconds/rollout": 6,
            "share/rollout": 0.6,
            "seconds/update": 2,
            "share/update": 0.2,
            "share/other": 0.2,
        }
    )
    clock.now += 1
    assert timer.report() == {"seconds/total": 1, "share/other": 1}


def test_timer_counts_a_phase_that_raises():
    clock = Clock()
    timer = Timer(clock)
    with pytest.raises(KeyError), timer.measure("reward"):
        clock.now += 4
        raise KeyError
    assert timer.report()["seconds/reward"] == 4
