"""Programs that stand for those of a scheduler: they note how they were called, and answer."""

import os
import pathlib
import subprocess
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).parents[2]


def install(directory: pathlib.Path, name: str, body: str) -> None:
    """Puts a Bash program into a directory for PATH; it appends its arguments to calls.log."""
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text(
        f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} $*" >>"{directory}/calls.log"\n{body}\n'
    )
    program.chmod(0o755)


def calls(directory: pathlib.Path) -> list[str]:
    """The calls of the programs, in order."""
    return (directory / "calls.log").read_text().splitlines()


def start(
    script: str,
    *arguments: str,
    path: pathlib.Path,
    environment: Mapping[str, str],
    launchers: pathlib.Path = ROOT / "launch",
) -> subprocess.Popen[str]:
    """Starts a launcher with the fakes first in PATH."""
    return subprocess.Popen(
        ["bash", str(launchers / script), *arguments],
        env={"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(path), **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
