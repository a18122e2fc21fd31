"""ShellCheck on all shell that this repository runs."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"])


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
