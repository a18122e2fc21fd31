"""`launch/local.py` with small programs; those of JAX come in test_two_processes."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
# Says who it is, then does what the environment asks of this process, or of all.
PROGRAM = """
import os, signal, sys, time
index = os.environ["JAX_PROCESS_ID"]
print("process", index, "of", os.environ["JAX_NUM_PROCESSES"], flush=True)
print("at", os.environ["JAX_COORDINATOR_ADDRESS"], file=sys.stderr, flush=True)
todo = sys.argv[1 + int(index)]
def on_term(*_):
    print("saved", flush=True)
    raise SystemExit(0)
if todo == "save":
    signal.signal(signal.SIGTERM, on_term)
elif todo == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
if todo == "once":
    marker = sys.argv[-1]
    if not os.path.exists(marker):
        open(marker, "w").close()
        raise SystemExit(9)
elif todo.isdecimal():
    raise SystemExit(int(todo))
elif todo != "end":
    time.sleep(600)
"""


def start(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(
        [sys.executable, str(LAUNCHER), "-n", "2", *options, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    waiting = {"[0] ready\n", "[1] ready\n"}
    while waiting:
        line = process.stdout.readline()
        assert line, "it ended early"
        waiting.discard(line)


def test_each_process_knows_the_others_and_its_lines_say_whose_they_are():
    output, errors = (process := start("end", "end")).communicate(timeout=60)
    assert process.returncode == 0
    lines = sorted(output.splitlines())
    assert lines == ["[0] process 0 of 2", "[0] ready", "[1] process 1 of 2", "[1] ready"]
    meeting = {line[3:] for line in errors.splitlines() if " at " in line}
    assert len(meeting) == 1
    assert meeting.pop().startswith(" at 127.0.0.1:")


def test_one_that_fails_ends_the_others_with_its_status():
    process = start("sleep", "7", options=("--grace_seconds=20",))
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7
    assert re.search(r"\[launcher\] error: process 1 of 2 .*status 7", errors)
    assert time.monotonic() - began < 20


def test_a_killed_process_is_named_with_its_signal():
    process = start("sleep", "sleep")
    wait_until_ready(process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert re.search(r"error: process 0 of 2 .*SIGKILL", errors)


def test_a_stopped_process_is_named_before_and_when_another_fails():
    process = start("sleep", "sleep")
    wait_until_ready(process)
    first, second = children(process.pid)
    os.kill(second, signal.SIGSTOP)
    assert process.stderr is not None
    line = next(line for line in process.stderr if "warning" in line)
    assert f"process 1 of 2 (pid {second}) " in line
    os.kill(first, signal.SIGABRT)
    _, errors = process.communicate(timeout=60)
    assert "error: process 1 of 2" in errors
    assert re.search(r"error: process 0 of 2 .*SIGABRT", errors)


def test_sigterm_reaches_all_and_waits_for_them():
    process = start("save", "save")
    wait_until_ready(process)
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]
    assert "[launcher] SIGTERM:" in errors


def test_nobody_outlives_a_killed_launcher():
    process = start("deaf", "deaf")
    wait_until_ready(process)
    pids = children(process.pid)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_restarts(tmp_path):
    marker = str(tmp_path / "failed before")
    process = start("once", "sleep-or-end", marker, options=("--restarts=1", "--grace_seconds=0.1"))
    # Process 1 sleeps in both attempts: end the second one.
    assert process.stderr is not None
    for line in process.stderr:
        if "(1 of 1)" in line:
            break
    wait_until_ready(process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert pathlib.Path(marker).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0", "--", "true"], "--processes=0: "),
        (["-n", "2", "--restarts=-1", "--", "true"], "--restarts=-1: "),
        (["-n", "2"], "required: command"),
    ],
)
def test_mistakes(arguments, words):
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", ["[0] 4 0,1", "[1] 4 2,3"]), ("4,7,6,5", ["[0] 4 4,7", "[1] 4 6,5"])],
)
def test_devices(visible, expected):
    names = "('JAX_NUM_CPU_DEVICES', 'CUDA_VISIBLE_DEVICES')"
    program = f"import os; print(*(os.environ[name] for name in {names}))"
    done = subprocess.run(
        [
            *(sys.executable, str(LAUNCHER), "-n", "2", "--cpu_devices=4", "--gpus=2"),
            *("--", sys.executable, "-c", program),
        ],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": visible},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert sorted(done.stdout.splitlines()) == expected


def children(pid: int) -> list[int]:
    """Processes that a process started, in order."""
    listed = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(map(int, listed.split()))
