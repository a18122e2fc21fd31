"""One of two processes of a training is killed: the other soon ends, too, and both resume."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import comparison
import devices

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHER = ROOT / "launch" / "local.py"
HEARTBEAT_SECONDS = 20


def launch(
    experiment: pathlib.Path, workdir: pathlib.Path, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, str(LAUNCHER), "-n", "2", "--cpu_devices=2", "--grace_seconds=5"),
            *("--", sys.executable, "-m", "jax_unmask.train"),
            *(f"--config={experiment}", f"--workdir={workdir}"),
        ],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(process: subprocess.Popen[str], workdir: pathlib.Path, count: int) -> None:
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 400
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes that a process started, in order."""
    listed = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(map(int, listed.split()))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, write_experiment):
    return write_experiment(
        tmp_path_factory.mktemp("two") / "experiment.py",
        "sft",
        train__steps=200,
        checkpoint__every=5,
        mesh__fsdp=4,
    )


@pytest.fixture(scope="module")
def undisturbed(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    process = launch(experiment, workdir)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_launcher_ends_the_other_and_the_pair_resumes(
    experiment, undisturbed, tmp_path, victim
):
    process = launch(experiment, tmp_path)
    wait_for_lines(process, tmp_path, 12)
    os.kill(children(process.pid)[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 128 + signal.SIGKILL
    assert re.search(rf"error: process {victim} of 2 .*SIGKILL", errors)

    process = launch(experiment, tmp_path)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    resumed = re.search(r"Continuing .* at step (\d+) of 200", errors)
    assert resumed
    assert 5 <= int(resumed[1]) < 200
    assert comparison.differences(undisturbed, tmp_path) == []


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_one_step_of_both(experiment, undisturbed, tmp_path):
    process = launch(experiment, tmp_path)
    wait_for_lines(process, tmp_path, 12)
    process.terminate()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert len(set(re.findall(r"saving after step (\d+)", errors))) == 1
    process = launch(experiment, tmp_path)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert comparison.differences(undisturbed, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_without_a_launcher_jax_ends_the_other(experiment, tmp_path, victim):
    # As on two machines: nobody watches both processes but they themselves.
    port = devices.free_port()
    pair = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "jax_unmask.train"),
                *(f"--config={experiment}", f"--workdir={tmp_path}"),
            ],
            cwd=ROOT,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
                "JAX_HEARTBEAT_TIMEOUT_SECONDS": str(HEARTBEAT_SECONDS),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    survivor = pair[1 - victim]
    try:
        wait_for_lines(survivor, tmp_path, 12)
        pair[victim].kill()
        killed = time.monotonic()
        _, errors = survivor.communicate(timeout=10 * HEARTBEAT_SECONDS)
        seconds = time.monotonic() - killed
    finally:
        for process in pair:
            process.kill()
    print(f"process {victim} killed: the other ended after {seconds:.1f} s")
    assert survivor.returncode != 0
    assert seconds < 4 * HEARTBEAT_SECONDS
    assert re.search(r"(?i)error|fatal", errors)
