"""The quickstart itself, killed in training and in its evaluation: nothing must change."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Whole commands, less of everything: 24 iterations instead of 75, 50 problems instead of 1,000.
QUICKSTART = (
    "--config=configs/quickstart.py",
    "--config.train.steps=24",
    "--config.rollout.prompts_per_step=8",
    "--config.eval.num_problems=50",
    "--config.eval.validation_problems=50",
)
DEADLINE = 900.0


def start(workdir: pathlib.Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jax_unmask.train", f"--workdir={workdir}", *QUICKSTART]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_when(process: subprocess.Popen[bytes], path: pathlib.Path, count: int) -> None:
    """Kills the process once a file has that many lines."""
    deadline = time.monotonic() + DEADLINE
    while lines(path) < count:
        assert process.poll() is None, f"it ended before {path.name} had {count} lines"
        assert time.monotonic() < deadline, f"{path.name} never had {count} lines"
        time.sleep(0.02)
    process.kill()
    process.wait(timeout=60)


def results(workdir: pathlib.Path) -> list[dict]:
    """The rows of the evaluation in any order, without the workdir and what a clock measured."""
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    for row in rows:
        for name in ("seconds_per_sequence", "tokens_per_second", "compile_seconds"):
            del row[name]
        row["policy"] = row["policy"].replace(str(workdir), "WORKDIR")
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


@pytest.mark.slow
@pytest.mark.timeout(3 * DEADLINE)
def test_kill_9_in_the_quickstart(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait(timeout=DEADLINE) == 0

    for file, count in (("metrics.jsonl", 5), ("metrics.jsonl", 14), ("results.jsonl", 10)):
        kill_when(start(killed), killed / file, count)
    assert start(killed).wait(timeout=DEADLINE) == 0

    for name in ("metrics.jsonl", "policy/model.safetensors", "policy/policy_config.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert results(killed) == results(undisturbed)
