from __future__ import annotations

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
