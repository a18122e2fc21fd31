"""Programs that need several devices, on a machine that has one."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

TESTS = pathlib.Path(__file__).parent
RESULT = "result: "
"""Begins the line of a program's output that holds its result, as JSON."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def run_in_processes(count: int, processes: int, *arguments: object) -> list[Any]:
    """The result of a Python program in each of several processes that belong together.

    Args:
        count: how many CPU devices each process sees.
        processes: how many processes there are.
        *arguments: of Python: the program's file, or "-c" and its source, and its arguments.
    """
    address = f"127.0.0.1:{free_port()}"
    started = []
    for process in range(processes):
        variables = environment(count)
        if processes > 1:
            variables |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(process),
            }
        command = [sys.executable, *map(str, arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=variables, **pipes))
    try:
        outputs = [process.communicate(timeout=1500) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [
        json.loads(line.removeprefix(RESULT))
        for output, _ in outputs
        for line in output.splitlines()
        if line.startswith(RESULT)
    ]
