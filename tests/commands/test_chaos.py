"""Trainings and evaluations of every kind, disturbed at random moments, end as undisturbed ones."""

import subprocess
import sys

import pytest

import chaos

KILLS = 5
MEASURED = {
    "eval__after_training": True,
    "eval__num_problems": 4,
    "eval__policies": ("random:tokens_per_step=4", "threshold:threshold=0.3|0.5"),
    "eval__block_lengths": (8, 16),
    "eval__examples": 2,
}
LONG = {"train__steps": 12, "checkpoint__every": 1, "checkpoint__keep_latest": 2}
ONE_DEVICE = {"data__batch_size": 4, "mesh__data": 2}
STATES = {"learner__method": "trace", "learner__block_length": 8}
# After the first stage, at this threshold, rewards differ within groups.
CURRICULUM = """
from jax_unmask import recipes


def get_config():
    config = recipes.config("curriculum")
    config.stages = ("{sft} task.prompt_length=17", "{tracerl} {changes}")
    return config
"""


@pytest.fixture(scope="module")
def experiments(tmp_path_factory, write_experiment):
    return write_experiments(tmp_path_factory.mktemp("experiments"), write_experiment)


def write_experiments(directory, write_experiment):
    """Experiment files by name, of a few seconds each."""

    def write(name, recipe, **changes):
        return write_experiment(directory / f"{name}.py", recipe, **changes)

    files = {
        "sft": write("sft", "sft", **LONG),
        "state_sft": write("state_sft", "state_sft", **LONG, **STATES),
        "policy_grpo": write("policy_grpo", "policy_grpo", **LONG, **MEASURED),
        "policy_environments": write("policy_environments", "policy_environments", **LONG),
        "two": write("two", "sft", **LONG, **ONE_DEVICE),
        "tracerl": write("tracerl", "tracerl", **LONG, **MEASURED),
        "joint": write("joint", "joint", **LONG, turn=2),
        "eval": write("eval", "policy_grpo", **MEASURED, eval__seeds=(0, 1, 2, 3)),
    }
    curriculum = directory / "curriculum.py"
    stages = {name: str(write(f"stage_{name}", name, **LONG)) for name in ("sft", "tracerl")}
    changes = "train.steps=6 rollout.policy=threshold:threshold=0.16"
    curriculum.write_text(CURRICULUM.format(**stages, changes=changes))
    return files | {"curriculum": curriculum}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ways", "program"),
    [
        ("sft", ("kill", "stop"), "train"),
        ("state_sft", ("kill", "term"), "train"),
        ("policy_grpo", ("kill", "stop"), "train"),
        ("policy_environments", ("kill", "term"), "train"),
        ("tracerl", ("kill", "stop"), "train"),
        ("joint", ("kill", "stop"), "train"),
        ("curriculum", ("kill", "term"), "train"),
        ("eval", ("kill", "stop"), "eval"),
        ("two", ("kill", "stop"), "train"),
    ],
)
def test_ends_as_an_undisturbed_run(name, ways, program, experiments, tmp_path):
    processes = 2 if name == "two" else 1
    start = chaos.starter([f"--config={experiments[name]}"], program=program, processes=processes)
    moments = chaos.EVALUATING if program == "eval" else tuple(chaos.MOMENTS)
    kills, different = chaos.torture(
        start, tmp_path, kills=KILLS, ways=ways, seed=1, moments=moments
    )
    print(chaos.summary(kills, different, tmp_path))
    assert len(kills) == KILLS
    assert different == []


@pytest.mark.slow
def test_a_disk_that_gets_full(experiments, tmp_path):
    command = chaos.on_a_small_disk(tmp_path, 10)
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace with a disk of its own")
    tool = [f"--workdir={tmp_path}", f"--kills={KILLS}", "--ways=full", "--disk_mb=10"]
    config = f"--config={experiments['sft']}"
    done = subprocess.run(
        [sys.executable, chaos.__file__, *tool, config], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "identical" in done.stdout
