import os
import re
import signal
import threading
import time

import pytest

from jax_unmask.runtime.preemption import Preemption


@pytest.fixture
def handler():
    """A handler to restore, so that a failing test does not end the test run."""
    calls: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGTERM, previous)


def test_sigterm_sets_the_flag_and_the_old_handler_comes_back(handler):
    with Preemption() as preemption:
        assert not preemption.requested(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested(2)
        assert preemption.requested(3)
        # A second signal shall end a process that hangs while it saves.
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert handler == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler == [signal.SIGTERM]


def test_a_step_that_outlasts_the_grace_period_ends_the_process(handler, monkeypatch, caplog):
    ended = threading.Event()
    statuses: list[int] = []
    monkeypatch.setattr("os._exit", lambda status: (statuses.append(status), ended.set()))
    with Preemption(grace_seconds=0.05):
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(timeout=30)
    assert statuses == [143]
    assert "(checkpoint.grace_seconds)" in caplog.text
    assert "checkpoint.every" in caplog.text


def test_who_leaves_in_time_is_not_ended(handler, monkeypatch):
    statuses: list[int] = []
    monkeypatch.setattr("os._exit", statuses.append)
    before = threading.active_count()
    with Preemption(grace_seconds=0.2) as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested(1)
    with Preemption(grace_seconds=0.2) as preemption:
        assert not preemption.requested(1)
    time.sleep(0.4)
    assert statuses == []
    assert threading.active_count() == before


def test_ctrl_c_saves_and_a_second_one_stops(handler, monkeypatch, caplog):
    ended = threading.Event()
    statuses: list[int] = []
    monkeypatch.setattr("os._exit", lambda status: (statuses.append(status), ended.set()))
    before = signal.getsignal(signal.SIGINT)
    with Preemption(grace_seconds=0.05) as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested(1)
        assert preemption.signal == signal.SIGINT
        assert re.search("SIGINT .* step 1", caplog.text)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        # As if the device was busy, and Python's handler had not run yet.
        signal.signal(signal.SIGINT, preemption._on_signal)
        assert not statuses
        os.kill(os.getpid(), signal.SIGINT)
        assert ended.wait(timeout=30)
    assert statuses == [128 + signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_under_jax_distributed_its_service_decides(handler, monkeypatch):
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point", lambda step: step == 4
    )
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) is before
        assert [preemption.requested(step) for step in (3, 4, 5)] == [False, True, True]
