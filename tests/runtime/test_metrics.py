import json
import logging
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.runtime import metrics
from jax_unmask.runtime.files import read_json_rows
from jax_unmask.runtime.metrics import MetricWriter


def writer(workdir, **options) -> MetricWriter:
    return MetricWriter(workdir, **({"resume_step": 0, "tensorboard": False} | options))


def test_one_object_per_step_and_timings_apart(tmp_path):
    with writer(tmp_path) as out:
        out.write(1, {"reward": jnp.float32(0.1), "nfe": np.int64(3), "split": "train", "ok": True})
        out.write_timings(1, {"seconds": 0.5})
        out.write(2, {"reward": float("nan"), "loss": -np.inf, "grad": np.array([2.5])})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "step": 1,
        "reward": float(np.float32(0.1)),
        "nfe": 3,
        "split": "train",
        "ok": True,
    }
    assert json.loads(lines[1]) == {"step": 2, "reward": "nan", "loss": "-inf", "grad": 2.5}
    assert read_json_rows(tmp_path / "timings.jsonl", "step") == [{"step": 1, "seconds": 0.5}]


def test_resume_cuts_later_steps_from_both_files(tmp_path):
    with writer(tmp_path) as out:
        for step in range(1, 6):
            out.write(step, {"x": step / 3})
            out.write_timings(step, {"seconds": step})
    undisturbed = (tmp_path / "metrics.jsonl").read_bytes()
    with writer(tmp_path, resume_step=3) as out:
        for name in ("metrics.jsonl", "timings.jsonl"):
            assert [row["step"] for row in read_json_rows(tmp_path / name, "step")] == [1, 2, 3]
        for step in (4, 5):
            out.write(step, {"x": step / 3})
    assert (tmp_path / "metrics.jsonl").read_bytes() == undisturbed


def test_a_torn_last_line_is_repaired_and_reported(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 1}\n{"step": 2, "x"')
    with caplog.at_level(logging.WARNING), writer(tmp_path, resume_step=2) as out:
        out.write(2, {"x": 2})
    assert "line 2" in caplog.text
    assert path.read_bytes() == b'{"step": 1, "x": 1}\n{"step": 2, "x": 2}\n'


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"x": 1}', '{"step": "1"}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        writer(tmp_path, resume_step=3)
    assert path.read_text().endswith('{"step": 3}\n')


def test_steps_must_increase_also_after_a_resume(tmp_path):
    with writer(tmp_path) as out:
        out.write(2, {})
        assert read_json_rows(tmp_path / "metrics.jsonl", "step") == [{"step": 2}]  # At once.
    with writer(tmp_path, resume_step=9) as out:
        for step in (2, 1):
            with pytest.raises(ValueError, match=rf"metrics\.jsonl: step {step} .*step 2\b"):
                out.write(step, {})


def test_refuses_what_is_no_scalar(tmp_path):
    with writer(tmp_path) as out:
        with pytest.raises(ValueError, match=r"'x' .*scalar"):
            out.write(1, {"x": np.zeros(2)})
        with pytest.raises(TypeError, match=r"'x' .*number"):
            out.write(1, {"x": None})


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with writer(tmp_path / "run", tensorboard=True) as out:
        out.write(1, {"x": 1})
        out.write_timings(1, {"x": 1})
        out.sync()
    assert not (tmp_path / "run").exists()


def test_tensorboard_events_are_written_beside(tmp_path):
    with writer(tmp_path, tensorboard=True) as out:
        out.write(1, {"reward": 0.5, "split": "train"})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"reward" in content
    assert b"split" not in content


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    """With the package itself, which then writes files for `wandb sync` and asks no server."""
    pytest.importorskip("wandb", reason="Weights & Biases is an extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        sink = metrics.WeightsAndBiases(tmp_path, project="p", config={"a": 1})
        with writer(tmp_path, resume_step=step - 1, sinks=(sink,)) as out:
            out.write(step, {"a_metric": 2, "name": "text"})
    # offline-run-TIME-ID, and a number after it where both runs begin in the same second.
    (name,) = {path.name.split("-")[3] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert name == (tmp_path / "wandb_run_id.txt").read_text().strip()
    (first, *_) = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert b"a_metric" in first.read_bytes()


def test_wandb_absent_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jax_unmask\[wandb\]'"):
        metrics.WeightsAndBiases(tmp_path, project="p", config={})
