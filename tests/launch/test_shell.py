"""ShellCheck on all shell that this repository runs."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("docs/**/*.sh"), ROOT / ".ci" / "run"])


def check(*arguments: str, text: str | None = None) -> str:
    beside_python = pathlib.Path(sys.executable).parent
    program = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    assert program, "pip install 'jax_unmask[test]' brings shellcheck"
    done = subprocess.run(
        [program, *arguments], input=text, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert script.stat().st_mode & 0o111
    assert check(str(script)) == ""


@pytest.mark.parametrize("key", ["setup", "run"])
def test_scripts_of_skypilot(key):
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert check("--shell=bash", "-", text=task[key]) == ""


@pytest.mark.slow
def test_rehearsal_of_the_benchmark_of_a_gpu(tmp_path):
    """Every stage but the one beside the public sampler, with a tiny model."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / "docs" / "benchmarks" / "gpu.sh", tmp_path],
        env=os.environ | {"PRESET": "tiny", "LIMIT": "1800", "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    heading, *stages = (tmp_path / "stages.txt").read_text().splitlines()
    assert heading == "stage seconds result"
    assert len(stages) == 6
    for stage in stages:
        name, _, result = stage.split(maxsplit=2)
        assert result == "done", done.stdout
        assert json.loads((tmp_path / f"{name}.json").read_text())
