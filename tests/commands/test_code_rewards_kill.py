"""Training with code rewards, killed: nothing is lost, nothing is done twice, nobody is left."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from jax_unmask.tasks import sandbox

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 6
EXPERIMENT = """
from jax_unmask import recipes


def get_config():
    config = recipes.config("{recipe}")
    config.task.update(name="kodcode", path={path!r}, prompt_length=200)
    config.model.update(path={model!r}, dtype="float32", param_dtype="float32")
    config.rollout.update(gen_length=16, block_length=8, prompts_per_step=2, group_size=2, parts=2)
    # Wrong programs are charged for their steps, so that a random denoiser gives a signal.
    config.reward.update(kind="additive", alpha=1.0)
    config.optimizer.lr = 1e-2
    config.train.steps, config.checkpoint.every, config.log.tensorboard = {steps}, 1, False
    config.eval.after_training = False
    {settings}
    return config
"""
RECIPES = {
    "policy_grpo": (
        """
    config.policy.network.update(hidden_dim=8, feedforward_dim=8, time_embed_dim=8)
    config.policy.network.initial_bias = 0.0
    config.optimizer.warmup_steps = 1
""",
        ("policy/model.safetensors", "policy/policy_config.json"),
    ),
    "tracerl": (
        """
    config.model.remat = False
    # About two of 260 bytes per step. A second round of rollouts where groups teach nothing.
    config.rollout.update(policy="threshold:threshold=0.0085", temperature=1.0)
    config.filter.update(low=0.0, rounds=2)
    config.learner.update(shrink=2, minibatches=2, chunk_size=8)
    config.value.enabled = True
""",
        ("model/model.safetensors", "model/config.json"),
    ),
}


def start(experiment: pathlib.Path, workdir: pathlib.Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jax_unmask.train", f"--config={experiment}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, **quiet)


def descendants(ancestor: int) -> set[tuple[int, str]]:
    """Processes that stem from one, each with the time at which it started: ids are used again."""
    parents, begun = {}, {}
    for directory in pathlib.Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It has ended meanwhile.
            parents[int(directory.name)], begun[int(directory.name)] = int(fields[1]), fields[19]
    found, rest = {ancestor}, set()
    while found != rest:
        rest = found
        found = rest | {pid for pid, parent in parents.items() if parent in rest}
    return {(pid, begun[pid]) for pid in found - {ancestor}}


def alive(process: tuple[int, str]) -> bool:
    pid, begun = process
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == begun and fields[0] != "Z"


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_kill_9_in_training_with_code_rewards(recipe, byte_model, fixtures_dir, tmp_path):
    try:
        sandbox.shared()
    except sandbox.SandboxUnavailable as error:
        pytest.skip(str(error))
    experiment = tmp_path / "experiment.py"
    samples = fixtures_dir / "samples" / "kodcode"
    settings, exported = RECIPES[recipe]
    experiment.write_text(
        EXPERIMENT.format(
            recipe=recipe,
            path=str(samples),
            model=str(byte_model),
            steps=STEPS,
            settings=settings.strip(),
        )
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(experiment, whole).wait(timeout=600) == 0

    rows = killed / "metrics.jsonl"
    for count in (1, 3, 4):
        process = start(experiment, killed)
        wait_until(
            lambda count=count: rows.exists() and rows.read_bytes().count(b"\n") >= count,
            f"no {count} rows",
        )
        assert process.poll() is None
        children = descendants(process.pid)
        # The boxes, and in them the first processes that run the programs.
        assert len(children) >= 2
        process.kill()
        process.wait(timeout=60)
        wait_until(lambda children=children: not any(map(alive, children)), "a child lives on")
    assert start(experiment, killed).wait(timeout=600) == 0

    metrics = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    assert any(row["skipped"] == 0 and row["grad_norm"] > 0 for row in metrics)
    for name in ("metrics.jsonl", *exported):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    mine = descendants(os.getpid())
    assert not [pid for pid, _ in mine if b"jax_unmask.train" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
