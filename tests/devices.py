"""Programs that need several devices, on a machine that has one."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent


def environment(count: int) -> dict[str, str]:
    """The variables of a process that sees `count` CPU devices, and what tests share."""
    before = os.environ.get("XLA_FLAGS", "")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{before} --xla_force_host_platform_device_count={count}".strip(),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),
    }


def run_on_devices(count: int, program: str, *arguments: object) -> str:
    """Output of a Python program on `count` virtual devices.

    A process must ask for them before it first uses JAX, so the program gets one of its own.

    Args:
        count: how many CPU devices it sees.
        program: its source.
        *arguments: its `sys.argv[1:]`.
    """
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment(count),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
