"""The pool of worker processes, with a worker that hangs, dies or babbles when told to."""

import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from jax_unmask.tasks import workers as workers_module
from jax_unmask.tasks.workers import Lost, WorkerError, WorkerPool

WORKER = """
import os, sys, time
from jax_unmask.tasks.sandbox.inside import wire
wire.send(1, {"ready": True})
while True:
    try:
        job = wire.receive(0)
    except wire.Broken:
        sys.exit()
    if job["do"] == "hang":
        while True: time.sleep(1)
    if job["do"] == "die":
        os._exit(3)
    if job["do"] == "babble":
        os.write(1, b"\\0\\0\\0\\3xyz")
        continue
    if job["do"] == "children":
        if os.fork() == 0:
            while True: time.sleep(1)
        while True: time.sleep(1)
    time.sleep(job.get("seconds", 0))
    wire.send(1, {"got": job["do"], "pid": os.getpid(), "last": job["do"] == "last"})
"""


def pool(**settings):
    settings = {"workers": 2, "deadline_seconds": 1.0, **settings}
    return WorkerPool([sys.executable, "-c", WORKER], **settings)


def test_answers_come_to_their_own_jobs():
    with pool() as workers:
        futures = [workers.submit({"do": str(k)}) for k in range(50)]
        assert [future.result()["got"] for future in futures] == [str(k) for k in range(50)]
        assert len({future.result()["pid"] for future in futures}) == 2


@pytest.mark.parametrize(
    ("fault", "reason"), [("hang", "timed out"), ("die", "crashed"), ("babble", "crashed")]
)
def test_a_fault_costs_its_own_job_only(fault, reason):
    with pool() as workers:
        jobs = ["a", fault, "b", fault, "c", "d"]
        found = [future.result() for future in [workers.submit({"do": job}) for job in jobs]]
    assert [f == Lost(reason) for f in found] == [job == fault for job in jobs]
    assert [f["got"] for f in found if not isinstance(f, Lost)] == ["a", "b", "c", "d"]


def test_other_workers_go_on_while_one_hangs():
    with pool(deadline_seconds=20.0) as workers:
        for future in [workers.submit({"do": "warm", "seconds": 0.1}) for _ in range(4)]:
            future.result()
        began = time.monotonic()
        hung = workers.submit({"do": "hang"})
        quick = [workers.submit({"do": "x"}) for _ in range(20)]
        assert all(future.result()["got"] == "x" for future in quick)
        assert time.monotonic() - began < 15 and not hung.done()


def test_a_full_queue_holds_the_submitter_back(monkeypatch):
    monkeypatch.setattr(workers_module, "_WAITING", 2)
    with pool(workers=1, deadline_seconds=60.0) as workers:
        workers.submit({"do": "warm"}).result()
        submitted = [workers.submit({"do": "x", "seconds": 0.5})]

        def submit():
            for _ in range(5):
                submitted.append(workers.submit({"do": "x"}))

        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(0.1)
        assert len(submitted) <= 4  # One runs, two wait, one is on its way to the worker.
        thread.join()
        assert all(future.result()["got"] == "x" for future in submitted)


def test_a_worker_can_ask_to_be_replaced():
    with pool(workers=1) as workers:
        pids = [workers.submit({"do": do}).result()["pid"] for do in ("x", "last", "x")]
    assert pids[0] == pids[1] != pids[2]


def test_killed_workers_are_replaced_and_closing_leaves_no_process():
    workers = pool(deadline_seconds=1.0)
    workers.submit({"do": "x"}).result()
    for pid in workers.processes():
        os.kill(pid, signal.SIGKILL)
    found = [future.result() for future in [workers.submit({"do": "x"}) for _ in range(6)]]
    assert sum(isinstance(f, Lost) for f in found) <= 2
    pids = workers.processes()
    children = workers.submit({"do": "children"})
    time.sleep(0.2)
    workers.close()
    assert children.done()
    # A process that was killed needs a processor to die; one that was not never ends.
    until = time.monotonic() + 20
    while running_in_groups(pids) and time.monotonic() < until:
        time.sleep(0.01)
    assert not running_in_groups(pids)
    with pytest.raises(RuntimeError, match="closed"):
        workers.submit({"do": "x"})


def running_in_groups(groups):
    """Processes of some process groups that are not dead (and just not yet collected)."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state, _, group, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state not in "ZX" and int(group) in groups:
            found.append(entry.name)
    return found


def test_closing_cancels_what_waits():
    workers = pool(workers=1, deadline_seconds=30.0)
    workers.submit({"do": "x"}).result()
    futures = [workers.submit({"do": "hang"}) for _ in range(5)]
    workers.close()
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) >= 4


def test_a_worker_that_does_not_start_is_an_error_not_a_score():
    command = [sys.executable, "-c", "raise SystemExit('no-such-thing')"]
    with WorkerPool(command, workers=1, deadline_seconds=1.0) as workers:
        job = workers.submit({})
        with pytest.raises(WorkerError, match="no-such-thing"):
            job.result()


@pytest.mark.parametrize(("setting", "value"), [("workers", 0), ("deadline_seconds", 0)])
def test_bad_settings(setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value} must be"):
        pool(**{setting: value})
