"""A run that is killed and started again must end as one that was left alone."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import chaos
from jax_unmask.runtime.checkpoints import Checkpoints

pytestmark = pytest.mark.thorough

TRAINER = pathlib.Path(__file__).with_name("tiny_trainer.py")
STEPS = 60


def start(workdir: pathlib.Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TRAINER), str(workdir), str(STEPS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.strip() == line:
            return
    raise AssertionError(f"the trainer ended before {line!r}: {process.communicate()[1]}")


def final(workdir: pathlib.Path):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore(
            {"w": np.zeros(1000)}, {"step": np.zeros((), np.int32), "key": jax.random.key(0)}
        )
    assert restored is not None
    return (
        restored.step,
        restored.data,
        np.asarray(restored.params["w"]).tobytes(),
        jax.random.key_data(restored.state["key"]).tobytes(),
        (workdir / "metrics.jsonl").read_bytes(),
    )


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(start(workdir))
    return workdir


@pytest.fixture(scope="module")
def undisturbed(finished_run):
    result = final(finished_run)
    assert result[0] == STEPS
    assert [json.loads(line)["step"] for line in result[-1].splitlines()] == list(
        range(1, STEPS + 1)
    )
    return result


def test_ended_at_random_moments(tmp_path, finished_run, undisturbed):
    shutil.copytree(finished_run, tmp_path / "undisturbed")
    moments = ("start", "step", "save")
    kills, different = chaos.torture(
        start, tmp_path, kills=3, ways=("kill", "term"), seed=19188, moments=moments
    )
    assert different == []
    assert [(kill.moment, kill.way) for kill in kills] == [
        ("start", "kill"),
        ("step", "term"),
        ("save", "kill"),
    ]
    # The first comes before or as training begins.
    assert kills[0].step < kills[1].step < kills[2].step < STEPS
    text = chaos.summary(kills, different, tmp_path)
    assert text.startswith("kills       3: ")
    assert text.endswith("identical")


def test_a_program_that_fails_by_itself_is_no_kill(tmp_path):
    def fail(workdir):
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])

    with pytest.raises(chaos.Unexpected, match=r"status 3 .*step 0;"):
        chaos.torture(fail, tmp_path, kills=1)


def test_sigterm_saves_and_exits_0_and_the_next_run_goes_on(tmp_path, undisturbed):
    process = start(tmp_path)
    wait_for_line(process, "step 7")
    process.terminate()
    output = finish(process)
    stopped = int(output.split()[-1])
    assert 7 <= stopped < STEPS
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == stopped
    assert finish(start(tmp_path)).splitlines()[0] == f"start {stopped}"
    assert final(tmp_path) == undisturbed


def test_starting_a_finished_run_again_changes_nothing(finished_run, undisturbed):
    assert finish(start(finished_run)).splitlines() == [f"start {STEPS}"]
    assert final(finished_run) == undisturbed
