#!/usr/bin/env python3
"""Runs one command as N processes of one JAX program on this machine; needs no cluster.

  launch/local.py -n 2 -- python -m jax_unmask.train --config=configs/quickstart.py

Each process is told where to meet the others (JAX_COORDINATOR_ADDRESS on a free port,
JAX_NUM_PROCESSES, JAX_PROCESS_ID), and its output lines begin with its number. When one process
fails, the others, which would wait for it for ever, are ended, and the launcher exits with its
status. With --restarts they are all started anew; training goes on from its last checkpoint.
SIGTERM and SIGINT go to every process: training saves, and all leave with status 0.

On machines with GPUs, --gpus=K gives each process K of them. --cpu_devices=K makes K devices of
each process's CPU, for trying things out.
"""

import argparse
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

POLL_SECONDS = 0.05
_STOPPED_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def environment(options: argparse.Namespace, index: int, port: int) -> dict[str, str]:
    """Environment variables of one process."""
    own = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if options.cpu_devices is not None:
        own |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.cpu_devices)}
    if options.gpus is not None:
        first = index * options.gpus
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if visible == [""]:
            visible = [str(gpu) for gpu in range(options.processes * options.gpus)]
        own["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + options.gpus])
    heartbeat = {"JAX_HEARTBEAT_TIMEOUT_SECONDS": str(options.heartbeat_seconds)}
    return heartbeat | os.environ | own


class Group:
    """The processes of one attempt."""

    def __init__(self, options: argparse.Namespace) -> None:
        port, die_with_parent = _free_port(), _dies_with_parent()
        self._processes = [
            subprocess.Popen(
                options.command,
                env=environment(options, index, port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=die_with_parent,
            )
            for index in range(options.processes)
        ]
        self._readers = [
            threading.Thread(target=_relay, args=(source, target.buffer, index), daemon=True)
            for index, process in enumerate(self._processes)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def send(self, number: int) -> None:
        """Sends a signal to all that are alive."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def pid(self, index: int) -> int:
        """Process id of a process."""
        return self._processes[index].pid

    def failed(self) -> tuple[int, int] | None:
        """Number and status of a process that ended in another way than with status 0."""
        for index, process in enumerate(self._processes):
            if process.poll():
                return index, process.returncode
        return None

    def wait(self, seconds: float = float("inf")) -> bool:
        """Waits until all have ended; False if that takes longer."""
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in self._processes):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        # What they wrote last may still be on its way. Grandchildren may keep a pipe open.
        for reader in self._readers:
            reader.join(timeout=1.0)
        return True

    def stopped(self) -> list[int]:
        """Numbers of the processes that a signal has stopped (Linux)."""
        return [
            index
            for index, process in enumerate(self._processes)
            if process.poll() is None and _state(process.pid) in ("T", "t")
        ]

    def done(self) -> bool:
        """Whether all have ended."""
        return all(process.poll() is not None for process in self._processes)


class Launcher:
    """Starts groups until one succeeds, or may not be followed by another."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._signals: list[int] = []

    def run(self) -> int:
        """Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._signals.append(number))
        for attempt in range(self._options.restarts + 1):
            status = self._attempt()
            if not status or self._signals:
                return status
            if attempt < self._options.restarts:
                _say(f"starting all again ({attempt + 1} of {self._options.restarts})")
        return status

    def _attempt(self) -> int:
        """Runs one group to its end; returns 0, or the status of the process that failed first."""
        group, forwarded = Group(self._options), 0
        since: dict[int, float] = {}
        told: set[int] = set()
        while True:
            failure = group.failed()
            now, stopped = time.monotonic(), group.stopped()
            since = {index: since.get(index, now) for index in stopped}
            if failure is not None:
                for index in stopped:
                    _say(f"error: {self._stopped(group, index, now - since[index])}")
                return self._end(group, *failure)
            for index in stopped:
                if now - since[index] > _STOPPED_SECONDS and index not in told:
                    told.add(index)
                    _say(f"warning: {self._stopped(group, index, now - since[index])}")
            told &= set(stopped)
            if group.done():
                group.wait()
                return 0
            while forwarded < len(self._signals):
                number = self._signals[forwarded]
                forwarded += 1
                _say(f"{signal.Signals(number).name}: passing it on to all processes")
                # SIGINT is for programs that nobody asked to save; the second of any kind kills.
                group.send(number if forwarded == 1 else signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _stopped(self, group: Group, index: int, seconds: float) -> str:
        return (
            f"process {index} of {self._options.processes} (pid {group.pid(index)}) has been "
            f"stopped by a signal for {seconds:.0f} s, and the others wait for it; kill -CONT lets "
            "it go on"
        )

    def _end(self, group: Group, index: int, status: int) -> int:
        """Ends the others."""
        name = f"process {index} of {self._options.processes}"
        ended = f"ended with status {status}"
        if status < 0:
            ended, status = f"was ended by {signal.Signals(-status).name}", 128 - status
        others = "; ending the others" if not group.done() else ""
        _say(f"error: {name} {ended}{others}")
        group.send(signal.SIGTERM)
        group.send(signal.SIGCONT)  # One that is stopped would not hear of it.
        if not group.wait(self._options.grace_seconds):
            group.send(signal.SIGKILL)
            group.wait()
        return status


def _state(pid: int) -> str:
    """State letter of a process, as in `ps`; empty where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _dies_with_parent() -> Callable[[], None] | None:
    """The call with which a child ends when its launcher is killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _relay(source: BinaryIO, target: BinaryIO, index: int) -> None:
    """Copies lines, each with the number of its process before it."""
    for line in source:
        target.write(b"[%d] %s" % (index, line if line.endswith(b"\n") else line + b"\n"))
        target.flush()


def _say(text: str) -> None:
    print(f"[launcher] {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; ends the process where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-n", "--processes", type=int, required=True, help="how many processes")
    add("--restarts", type=int, default=0, help="starts after a failure; default: %(default)s")
    add(
        "--grace_seconds",
        type=float,
        default=10.0,
        help="from asking the survivors of a failure to end to killing them; default: %(default)s",
    )
    add(
        "--heartbeat_seconds",
        type=int,
        default=60,
        help="silence after which JAX takes a process for dead (JAX_HEARTBEAT_TIMEOUT_SECONDS "
        "in the environment goes before it); default: %(default)s",
    )
    add("--cpu_devices", type=int, help="devices made of each process's CPU")
    add("--gpus", type=int, help="GPUs for each process")
    add("command", nargs="+", help="the command, after --")
    options = parser.parse_args(arguments)
    for name in ("processes", "heartbeat_seconds", "cpu_devices", "gpus"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)}: it must be at least 1")
    for name in ("restarts", "grace_seconds"):
        if getattr(options, name) < 0:
            parser.error(f"--{name}={getattr(options, name)}: it must not be negative")
    return options


def main() -> None:
    """Runs the launcher."""
    options = parse()
    _say(f"{options.processes} processes: {shlex.join(options.command)}")
    sys.exit(Launcher(options).run())


if __name__ == "__main__":
    main()
