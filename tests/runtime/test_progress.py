import io

import pytest

from jax_unmask.runtime.progress import Jobs, Timer, leave_out_step, progress_bar


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_it_writes_a_line_now_and_then(capsys):
    clock = Clock()
    with progress_bar(100, initial=20, title="train") as bar:
        bar._time = clock
        clock.now = bar.start_t
        for step in range(21, 61):
            clock.now += 1
            bar.set_postfix(reward=0.123456, refresh=False)
            bar.update(step - bar.n)
    lines = capsys.readouterr().err.splitlines()
    starts = [f"train {step}/100" for step in (20, 30, 40, 50, 60)]
    assert [line.split(" |")[0] for line in lines[:5]] == starts
    # The 20 steps from before the resume don't count.
    assert lines[1] == "train 30/100 | 1.00step/s | 00:10<01:10, reward=0.123"


def test_a_log_that_is_full_is_no_error(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("sys.stderr", io.TextIOWrapper(full, write_through=True))
        with progress_bar(2) as bar:
            bar.update(2)
        assert bar.n == 2


def test_the_first_step_of_a_process_has_no_rate(capsys):
    clock = Clock()
    with progress_bar(10, title="train") as bar:
        bar._time = clock
        bar.start_t = bar.last_print_t = clock.now
        clock.now += 108
        leave_out_step(bar)
        clock.now += 20
        bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "train 1/10 |?step/s | 00:00<?"
    assert lines[2].startswith("train 2/10 |20.00s/step | 00:20<02:40")


def test_time_left_counts_programs_to_compile():
    clock = Clock()
    jobs = Jobs(4, clock=clock)
    clock.now += 102
    assert "102 s, 6 s left" in jobs.done(1, "", compiled=100.0)
    assert "102 s, 102 s left" in jobs.done(2, "", to_compile=1)


def test_other_processes_show_nothing(monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(10) as bar:
        bar.set_postfix(nfe=3)
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
