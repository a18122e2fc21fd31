"""Detects a stalled training and names the process that it waits for."""

import contextlib
import dataclasses
import faulthandler
import json
import logging
import os
import pathlib
import resource
import socket
import sys
import threading
import time
from typing import ClassVar

import jax

from jax_unmask.runtime import accelerators
from jax_unmask.runtime.files import Closing, atomic_write, named
from jax_unmask.settings import Settings, setting

DIRECTORY = "heartbeats"
STALLED = 124
"""Status of a process that left because training stood still; what `timeout` uses."""

_INTERVAL = 10.0  # Seconds between two beats.

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WatchSettings(Settings):
    """Settings that watch a run: stalls and profiles."""

    is_exempt: ClassVar[bool] = True

    stall_seconds: float = setting(
        1800.0,
        "A phase of a step that takes longer, compilation included, is reported with the process "
        "that hangs and the stacks of all. 0: never.",
        ge=0,
        le=1e8,
    )
    end_stalled: bool = setting(
        False, "End the processes then (status 124), for launchers that start them again."
    )
    profile_steps: int = setting(
        0, "Steps to trace for TensorBoard, from the third of a process on.", ge=0
    )

    def check(self) -> None:
        self.require(
            not 0 < self.stall_seconds < 1,
            "stall_seconds",
            "every step would take longer",
            "Give at least 1, or 0 for never",
        )


@dataclasses.dataclass(frozen=True)
class Beat:
    """Progress report of one process."""

    step: int
    phases: int  # Phases of that step that it has entered,
    phase: str  # the last of them,
    seconds: float  # and for how long it has been there.
    beats: int  # Reports so far.
    host: str
    pid: int

    @property
    def position(self) -> tuple[int, int]:
        """Progress as (step, phases entered); all processes go through the same phases."""
        return self.step, self.phases


class Heartbeat(Closing):
    """Reports the progress of this process to the others, and logs which process stalls.

    In a run of several processes all wait for the slowest at the next collective, so all of them
    stand still. But each enters the phases of a step in order: the process in the earliest phase is
    the one that hangs. A process whose thread does not write any more is stopped, gone, or stuck
    where Python cannot run.

    A thread writes `workdir/heartbeats/N.json`, whatever the main thread is at; on a stall each
    process appends the stacks of its threads to `N.stacks.txt` there, and the first that still
    answers names the one that hangs.

    Args:
        workdir: directory of the run, that all processes see.
        stall_seconds: how long a phase may take; 0 for no limit. The first step of a process, which
            compiles, may take as long too.
        ends: end the process then, with status `STALLED`, for launchers that start it again.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], stall_seconds: float, *, ends: bool = False
    ) -> None:
        self._directory = pathlib.Path(workdir) / DIRECTORY
        self._stall_seconds = stall_seconds
        self._ends = ends
        self._process, self._count = jax.process_index(), jax.process_count()
        self._interval = min(_INTERVAL, stall_seconds / 4) if stall_seconds else _INTERVAL
        self._step, self._phases, self._phase = 0, 0, "start"
        self._since = time.monotonic()
        self._beats = 0
        self._reported: tuple[int, int] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """A step begins."""
        self._since = time.monotonic()
        self._step, self._phases, self._phase = step, 0, "begin"

    def enter(self, phase: str) -> None:
        """A phase of the step begins."""
        self._since = time.monotonic()
        self._phases, self._phase = self._phases + 1, phase

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            beat = self._beat()
            stalled = 0 < self._stall_seconds <= beat.seconds
            # A full disk, or a workdir that is gone, must not end the watch.
            with contextlib.suppress(OSError):
                self._write(beat)
                if stalled and self._reported != beat.position:
                    self._reported = beat.position
                    self._report(beat)
            if stalled and self._ends:
                os._exit(STALLED)

    def _beat(self) -> Beat:
        self._beats += 1
        return Beat(
            step=self._step,
            phases=self._phases,
            phase=self._phase,
            seconds=round(time.monotonic() - self._since, 1),
            beats=self._beats,
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def _write(self, beat: Beat) -> None:
        path = self._directory / f"{self._process}.json"
        atomic_write(path, json.dumps(dataclasses.asdict(beat)))

    def _report(self, beat: Beat) -> None:
        stacks = self._directory / f"{self._process}.stacks.txt"
        with named(stacks), stacks.open("a") as file:
            file.write(f"step {beat.step}, phase {beat.phase!r}, for {beat.seconds:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file)
        # Beats of before the stall look alike on a process that is gone and on one that waits.
        first = self._others()
        for _ in range(6):
            # All stand still at the same time: while this one listens, the others listen to it.
            self._closed.wait(self._interval / 2)
            self._write(self._beat())
        second = self._others()
        now = dataclasses.replace(beat, beats=beat.beats + 1)
        beats = second | {self._process: now}
        silent = [
            n for n in range(self._count) if n != self._process and first.get(n) == second.get(n)
        ]
        answering = sorted(beats.keys() - set(silent))
        if answering[0] != self._process or self._closed.is_set():
            return
        logger.error(
            "%s Stacks: %s", verdict(beats, silent, beat), stacks.with_name("*.stacks.txt")
        )
        sys.stderr.flush()

    def _others(self) -> dict[int, Beat]:
        """The latest reports of the other processes."""
        found = {}
        for number in range(self._count):
            path = self._directory / f"{number}.json"
            if number != self._process and path.exists():
                found[number] = Beat(**json.loads(path.read_text()))
        return found


def verdict(beats: dict[int, Beat], silent: list[int], own: Beat) -> str:
    """The message that names the process that hangs, from the last beat of each.

    Processes that are `silent` do not answer.
    """
    text = f"Training has stood still for {own.seconds:.0f} s in step {own.step}."
    if silent:
        names = ", ".join(_name(number, beats.get(number)) for number in silent)
        return f"{text} No sign of life from {names}."
    last = min(beat.position for beat in beats.values())
    behind = {number: beat for number, beat in beats.items() if beat.position == last}
    if len(beats) == 1:
        return f"{text} It is in phase {own.phase!r}."
    if len(behind) == len(beats):
        return f"{text} All {len(beats)} processes are in phase {own.phase!r}."
    names = ", ".join(
        f"{_name(number, beat)} in phase {beat.phase!r} of step {beat.step}"
        for number, beat in sorted(behind.items())
    )
    return f"{text} The others wait for {names}."


def _name(number: int, beat: Beat | None) -> str:
    if beat is None:
        return f"process {number} (which never gave any)"
    return f"process {number} (host {beat.host}, pid {beat.pid})"


class Profile(Closing):
    """Traces some steps for TensorBoard and xprof, into `workdir/profile`.

    The first two steps of a process, which compile, are left out.
    """

    SKIPPED = 2

    def __init__(self, workdir: str | os.PathLike[str], steps: int) -> None:
        self._directory = pathlib.Path(workdir) / "profile"
        self._steps = steps
        self._seen = 0
        self._is_tracing = False

    def step(self, number: int) -> contextlib.AbstractContextManager[object]:
        """The context of a step, which is traced if it is one of those to trace."""
        if self._steps and self._seen == self.SKIPPED:
            jax.profiler.start_trace(str(self._directory))
            self._is_tracing = True
        if self._seen == self.SKIPPED + self._steps:
            self.close()
        self._seen += 1
        if not self._is_tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def close(self) -> None:
        """Writes the trace, if one is being made."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
            logger.info("Profile of %d steps: %s", self._steps, self._directory)


def memory() -> dict[str, int]:
    """Current and peak memory of this process in bytes, for `MetricWriter.write_timings`.

    Returns:
        "memory/host_peak", and where the backend tells (CPUs do not), of the device that has most,
        "memory/device" and "memory/device_peak".
    """
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"memory/host_peak": kilobytes * (1 if sys.platform == "darwin" else 1024)}
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    for name, key in (("device", "bytes_in_use"), ("device_peak", "peak_bytes_in_use")):
        values = [stats[key] for stats in known if key in stats]
        if values:
            found[f"memory/{name}"] = max(values)
    return found


def utilisation(flops: float, seconds: float) -> dict[str, float]:
    """Speed of the model for `MetricWriter.write_timings`, from operations over all devices.

    Returns:
        "model_flops_per_second", and "mfu", its part of what the devices can do (bfloat16, by
        their data sheets), where the table of `accelerators` has them.
    """
    if flops <= 0 or seconds <= 0:
        return {}
    found = {"model_flops_per_second": flops / seconds}
    device = accelerators.here()
    if device is not None:
        found["mfu"] = flops / seconds / (device.flops * jax.device_count())
    return found
