"""`launch/slurm.sh`: what it asks of SLURM, and what it does when SLURM stops it."""

import pathlib
import re
import signal
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "slurm.sh"
# Options of sbatch (its manual, version 24.05), and what their values look like; None: no value.
TIME = r"(\d+-)?\d+(:\d\d){0,2}"
OPTIONS = {
    "job-name": r"\S+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]?",
    "exclusive": None,
    "time": TIME,
    "signal": r"(R|B|BR)?:?(TERM|USR1|\d+)(@\d+)?",
    "requeue": None,
    "open-mode": "append|truncate",
    "output": r"\S+",
    "partition": r"\S+",
    "account": r"\S+",
}


def directives(text: str) -> dict[str, str | None]:
    """Options of the #SBATCH lines. SLURM reads none behind the first command."""
    lines = text.splitlines()
    commands = [n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    found: dict[str, str | None] = {}
    for number, line in enumerate(lines):
        if not line.startswith("#SBATCH"):
            continue
        assert number < commands[0], f"behind the first command: {line}"
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert match, f"not of the form --option or --option=value: {line}"
        option, value = match.groups()
        assert option in OPTIONS, f"sbatch has no option --{option}"
        pattern = OPTIONS[option]
        assert (value is None) == (pattern is None), line
        assert pattern is None or re.fullmatch(pattern, value), line
        assert option not in found, f"twice: {line}"
        found[option] = value
    return found


def test_directives():
    found = directives(SCRIPT.read_text())
    # One process per GPU, which is how JAX divides GPUs under SLURM.
    assert found["ntasks-per-node"] == found["gpus-per-node"]
    # SLURM may queue it again, and the log of the first part stays.
    assert "requeue" in found
    assert found["open-mode"] == "append"
    # The script gets the signal, and has minutes to pass it on and save.
    kind, seconds = found["signal"].split("@")
    assert kind == "B:TERM"
    assert int(seconds) >= 60


def run(fakes, tmp_path, srun: str):
    fakes.install(tmp_path / "bin", "srun", srun)
    fakes.install(tmp_path / "bin", "scontrol", "")
    return fakes.start(
        "slurm.sh",
        "--config=a b",
        "--workdir=/runs",
        path=tmp_path / "bin",
        environment={"SLURM_JOB_ID": "17", "VENV": "/venv"},
    )


@pytest.mark.parametrize("status", [0, 3])
def test_ends_with_the_status_of_training(fakes, tmp_path, status):
    process = run(fakes, tmp_path, f'[[ $5 == "--config=a b" ]] && exit {status}; exit 99')
    process.communicate(timeout=300)
    assert process.returncode == status
    assert fakes.calls(tmp_path / "bin") == [
        "srun --kill-on-bad-exit=1 /venv/bin/python -m jax_unmask.train --config=a b "
        "--workdir=/runs"
    ]


@pytest.mark.parametrize("status", [0, 143])
def test_sigterm_lets_training_save_and_queues_the_job_again(fakes, tmp_path, status):
    saved = tmp_path / "saved"
    process = run(
        fakes,
        tmp_path,
        f"trap 'sleep 0.3; touch {saved}; exit {status}' TERM\n"
        f"touch {tmp_path}/ready\nfor _ in $(seq 600); do sleep 0.1; done",
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert saved.exists(), "it did not wait for training to save"
    assert process.returncode == status
    assert fakes.calls(tmp_path / "bin")[-1] == "scontrol requeue 17"
    assert f" status {status}" in output


def test_without_arguments_it_explains_itself(fakes, tmp_path):
    process = fakes.start("slurm.sh", path=tmp_path, environment={})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "usage: sbatch" in errors
