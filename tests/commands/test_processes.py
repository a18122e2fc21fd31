"""Commands in two processes, started by the local launcher: what one process would have found."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import tiny
from jax_unmask import denoisers
from jax_unmask.commands import eval as eval_command
from jax_unmask.commands import train
from jax_unmask.denoisers.config import ExpertsConfig
from jax_unmask.evaluation.store import read_outcomes
from jax_unmask.runtime.files import read_json_rows
from jax_unmask.shipped import shipped_lengths

# More than `launch` waits for: two processes compile side by side.
pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

ROOT = pathlib.Path(__file__).parents[2]
TIMINGS = {"seconds_per_sequence", "tokens_per_second", "compile_seconds"}
EVALUATION = {
    "task__prompt_length": 17,
    "eval__num_problems": 10,
    "eval__batch_size": 4,
    "eval__block_lengths": (16,),
    "eval__policies": ("threshold:threshold=0.2|0.9",),
    "eval__examples": 2,
}


def launch(module, *arguments):
    """Runs a command as two processes of four devices each; what both wrote."""
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "launch" / "local.py"), "-n", "2", "--cpu_devices=4"),
            *("--", sys.executable, "-m", module, *map(str, arguments)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def check_same_rows(directory, expected):
    """The rows of two workdirs, but for how long they took, and what happened on each problem."""
    rows, others = (read_json_rows(each / "results.jsonl", "key") for each in (directory, expected))
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        kept = row.keys() - TIMINGS - {"useful_forward_fraction"}
        assert {key: row[key] for key in kept} == {key: other[key] for key in kept}
        for ours, theirs in zip(
            read_outcomes(directory, row), read_outcomes(expected, other), strict=True
        ):
            assert ours.tolist() == theirs.tolist()


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A random mixture of experts that every axis divides."""
    directory = tmp_path_factory.mktemp("models") / "experts"
    moe = ExpertsConfig(num_experts=4, per_token=2, size=8, layers=(True,))
    vocabulary = ["1", "2", "3", "4", ".", "=", "+"]
    tiny.save_model(directory, vocabulary, family="llada_moe", experts=moe)
    return directory


def test_two_processes_evaluate_what_one_does(experts, write_experiment, tiny_config, tmp_path):
    settings = EVALUATION | {"model__path": str(experts)}
    mesh = {"mesh__fsdp": 2, "mesh__tensor": 2}
    experiment = write_experiment(tmp_path / "experiment.py", **settings | mesh)
    directory, alone = tmp_path / "two", tmp_path / "one"
    arguments = (f"--config={experiment}", f"--workdir={directory}")
    output = launch("jax_unmask.eval", *arguments)
    eval_command.evaluate(tiny_config(**settings), alone)
    check_same_rows(directory, alone)
    # The first process writes the report, with the same generations.
    assert output.count("report.html; tables: ") == 1
    assert (directory / "frontier.png").is_file()
    pages = [(each / "report.html").read_text() for each in (directory, alone)]
    problems = [
        json.JSONDecoder().raw_decode(page.partition('"problems":')[2])[0] for page in pages
    ]
    assert problems[0] and problems[0] == problems[1]


def arithmetic(**changes):
    """A shipped model that gets some problems right, whose prompts differ in length."""
    prompt_length, length, _ = shipped_lengths("arithmetic")
    return {
        "model__path": "arithmetic",
        "task__name": "arithmetic",
        "task__prompt_length": prompt_length,
        "task__prompt_buckets": (prompt_length - 6, prompt_length - 3),
        "rollout__gen_length": length,
        "rollout__block_length": length,
        "rollout__prompts_per_step": 8,
        "rollout__group_size": 4,
        "rollout__batches": 2,
        "train__steps": 2,
        "checkpoint__every": 2,
        **changes,
    }


def check_same_metrics(directory, expected):
    for ours, theirs in zip(
        *(
            [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
            for each in (directory, expected)
        ),
        strict=True,
    ):
        for each in (ours, theirs):
            each.pop("useful_forwards")  # Slots share rows within a part of the batch.
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-4)


@pytest.mark.slow
def test_two_processes_roll_out_in_parts_and_evaluate(write_experiment, tiny_config, tmp_path):
    settings = arithmetic(
        learner__minibatches=2,
        eval__after_training=True,
        eval__num_problems=10,
        eval__batch_size=4,
        eval__policies=("threshold:threshold=0.5",),
        eval__examples=2,
    )
    settings["eval__block_lengths"] = (settings["rollout__gen_length"],)
    experiment = write_experiment(
        tmp_path / "experiment.py", **settings | {"mesh__fsdp": 2, "mesh__tensor": 2}
    )
    directory, alone = tmp_path / "two", tmp_path / "one"
    launch("jax_unmask.train", f"--config={experiment}", f"--workdir={directory}")
    assert train.train(tiny_config(**settings), alone)
    check_same_metrics(directory, alone)
    rows = [read_json_rows(each / "results.jsonl", "key") for each in (directory, alone)]
    for ours, theirs in zip(*rows, strict=True):
        # What was trained differs by rounding, and so its hash does.
        assert ours["policy_hash"] == theirs["policy_hash"] or ours["label"] == "trained here"
        for name in ("accuracy", "nfe_mean", "n"):
            assert ours[name] == theirs[name]
    assert (directory / "report.html").is_file()
    assert (directory / "policy" / "README.md").is_file()


@pytest.mark.slow
def test_two_processes_judge_together_and_export_one_model(write_experiment, tiny_config, tmp_path):
    settings = arithmetic(
        rollout__policy="threshold:threshold=0.5",
        rollout__temperature=1.0,
        reward__kind="multiplicative",
        reward__alpha=0.0,
        process__judge="steps",
        process__chunk_length=8,
        optimizer__lr=1e-4,
    )
    experiment = write_experiment(
        tmp_path / "experiment.py", "tracerl", **settings | {"mesh__fsdp": 8}
    )
    directory, alone = tmp_path / "two", tmp_path / "one"
    launch("jax_unmask.train", f"--config={experiment}", f"--workdir={directory}")
    assert train.train(tiny_config("tracerl", **settings), alone)
    check_same_metrics(directory, alone)
    (_, ours), (_, theirs) = (
        denoisers.from_pretrained(each / "model") for each in (directory, alone)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    names = [
        sorted(path.name for path in (each / "model").iterdir()) for each in (directory, alone)
    ]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_curriculum_passes_models_on_between_processes(write_experiment, tmp_path):
    # The second stage loads what the first process has just written.
    first = write_experiment(
        tmp_path / "first.py",
        "sft",
        train__steps=1,
        data__batch_size=8,
        optimizer__warmup_steps=0,
        mesh__fsdp=8,
    )
    second = write_experiment(
        tmp_path / "second.py",
        "tracerl",
        train__steps=1,
        optimizer__warmup_steps=0,
        value__enabled=False,
        rollout__prompts_per_step=4,
        rollout__group_size=2,
        learner__chunk_size=8,
        mesh__fsdp=8,
    )
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from jax_unmask import recipes\n\n\n"
        "def get_config():\n"
        "    config = recipes.config('curriculum')\n"
        f"    config.stages = ({str(first)!r}, {str(second)!r})\n"
        "    return config\n"
    )
    workdir = tmp_path / "two"
    launch("jax_unmask.train", f"--config={experiment}", f"--workdir={workdir}")
    for name in ("01-sft", "02-tracerl"):
        assert (workdir / name / "finished").is_file()
        denoisers.from_pretrained(workdir / name / "model")
