import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comparison import differences
from jax_unmask.runtime.checkpoints import CheckpointError, Checkpoints


def save(workdir, *, step=2, scale=1.0, seed=0, position=4, bias=0.0):
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(
            step,
            params={"layer": {"kernel": jnp.linspace(0.0, scale, 6), "bias": jnp.array([bias])}},
            state={"opt": (jnp.ones(2), None), "key": jax.random.key(seed), "host": np.arange(3)},
            data={"next": position},
        )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "left"
    save(workdir)
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 2, "loss": 0.5}) + "\n")
    (workdir / "policy").mkdir()
    (workdir / "policy" / "model.safetensors").write_bytes(b"weights")
    return workdir


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "right")


def test_what_does_not_matter_is_not_compared(original, copy):
    (copy / "timings.jsonl").write_text("{}\n")
    (copy / "policy" / "README.md").write_text("another day")
    assert differences(original, copy) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scale": 1.0000001}, ["checkpoints: params/layer/kernel"]),
        ({"bias": -0.0}, ["checkpoints: params/layer/bias"]),
        ({"seed": 1}, ["checkpoints: state/key"]),
        ({"position": 5}, ["checkpoints: data"]),
        ({"step": 3}, ["checkpoints: step"]),
    ],
)
def test_one_bit_of_a_checkpoint(original, copy, change, expected):
    shutil.rmtree(copy / "checkpoints")
    save(copy, **change)
    assert differences(original, copy) == expected


def test_files(original, copy):
    (copy / "metrics.jsonl").write_text(json.dumps({"step": 2, "loss": 0.5}) + " \n")
    (copy / "policy" / "model.safetensors").write_bytes(b"weightz")
    (copy / "model.safetensors").write_bytes(b"more")
    assert differences(original, copy) == [
        "metrics.jsonl",
        "model.safetensors",
        "policy/model.safetensors",
    ]


def test_nothing_damaged_passes_for_equal(original, copy):
    (copy / "checkpoints" / "2" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoints/2 is damaged: checksums.json is miss"):
        differences(original, copy)


def evaluate(workdir, *, seconds, day, accuracy=0.5):
    """Files of an evaluation, in their layout."""
    row = {"key": "k", "accuracy": accuracy, "seconds_per_sequence": seconds}
    row |= {"tokens_per_second": 1 / seconds, "policy": f"learned:{workdir}/policy"}
    workdir.mkdir(exist_ok=True)
    (workdir / "results.jsonl").write_text(json.dumps(row) + "\n")
    cells = f"| {100 * accuracy} ± 0.1 | 3.41 ± 0.31 | {1000 * seconds:.3g} | 0.00 |"
    (workdir / "summary.md").write_text(f"| accuracy | NFE | ms | unfilled % |\n{cells}\n")
    point = {"accuracy": accuracy, "ms": 1000 * seconds}
    data = {"about": [["run", workdir.name]], "subtitle": f"report of {day}", "point": point}
    text = f"accuracy   ms/sequence   unfilled\n{accuracy}   {1000 * seconds:.3g}      0.00\n"
    page = json.dumps(data, separators=(",", ":")) + f"\n<pre>{text}</pre>"
    (workdir / "report.html").write_text(page)


def test_evaluations_are_compared_without_clocks(tmp_path):
    left, right = tmp_path / "undisturbed", tmp_path / "killed"
    evaluate(left, seconds=0.01, day="2026-11-28")
    evaluate(right, seconds=0.2, day="2026-11-29")
    assert differences(left, right) == []
    evaluate(right, seconds=0.01, day="2026-11-28", accuracy=0.6)
    assert differences(left, right) == ["report.html", "results.jsonl", "summary.md"]


def test_stages_of_a_curriculum(original, tmp_path):
    for name in ("left", "right"):
        shutil.copytree(original, tmp_path / name / "01-sft")
    assert differences(tmp_path / "left", tmp_path / "right") == []
    (tmp_path / "right" / "01-sft" / "metrics.jsonl").write_text("{}\n")
    shutil.rmtree(tmp_path / "right" / "01-sft" / "checkpoints")
    save(tmp_path / "right" / "01-sft", seed=1)
    found = differences(tmp_path / "left", tmp_path / "right")
    assert found == ["01-sft/metrics.jsonl", "01-sft/checkpoints: state/key"]
