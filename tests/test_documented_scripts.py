"""The scripts that the documents' figures come from still run."""

import pathlib
import runpy
import sys

import pytest

from jax_unmask.commands import train

ROOT = pathlib.Path(__file__).parents[1]
TRACERL = ROOT / "docs" / "experiments" / "tracerl"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            assert not end.code
        return capsys.readouterr().out

    return run


@pytest.mark.thorough
def test_all_of_them_find_what_they_import(run):
    scripts = [
        path
        for path in (ROOT / "docs").rglob("*.py")
        if "argparse" in path.read_text() and "\nimport torch" not in path.read_text()
    ]
    assert TRACERL / "variance.py" in scripts
    for script in scripts:
        assert "usage: " in run(script, "--help"), script


@pytest.mark.slow
def test_those_of_tracerl_measure_what_the_study_trains(run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = runpy.run_path("configs/tracerl.py")["get_config"]("full")
    config.value.enabled = True
    config.train.steps = 5  # The fewest that make a point of a curve.
    config.eval.update(num_problems=32, after_training=True)
    train.train(config, tmp_path / "value-0")
    (line,) = run(TRACERL / "variance.py", tmp_path / "value-0", "--batches=2").splitlines()[2:]
    assert 0.1 < float(line.split("|")[3]) < 10
    table = run(TRACERL / "table.py", tmp_path, "--picture", tmp_path / "curves.png")
    assert "| value | 1 |" in table
    assert (tmp_path / "curves.png").stat().st_size
    limits = run(
        TRACERL / "value_limit.py", *("--batches=2", "--continuations=2", "--training_batches=1")
    )
    assert "explained by exact values" in limits and "copy, target right" in limits
