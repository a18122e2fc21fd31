"""Runs untrusted programs against tests, in boxes."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from jax_unmask.runtime.files import Closing
from jax_unmask.tasks.sandbox import boxes
from jax_unmask.tasks.sandbox.boxes import SandboxUnavailable
from jax_unmask.tasks.workers import Answer, Lost, WorkerError, WorkerPool

# Seconds for a box beyond the program's time limit: forks, clean-up, a busy machine.
_GRACE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on resources of a program and of the tests that call it.

    Attributes:
        cpu_seconds: CPU time of each process, whole seconds.
        wall_seconds: time from start to verdict. More than the CPU time, so that a busy machine
            fails no program that computes; it ends those that sleep.
        memory_bytes: address space of each process, and memory of all of them together.
        processes: processes and threads, three of which are the box's own.
        file_bytes: size of each file that is written.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 10.0
    memory_bytes: int = 512 * 2**20
    processes: int = 16
    file_bytes: int = 8 * 2**20

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"limit {field.name}={value} must be positive")


@dataclasses.dataclass(frozen=True)
class Job:
    """An untrusted program and the tests that it must pass.

    Attributes:
        program: Python source.
        tests: sources; each passes if it raises nothing. They can use the names that the program
            defines (`from solution import name` works as well), but run in another process: plain
            data is copied between the two, other objects are called remotely.
        setup: trusted source that runs before the tests; what it defines wins over the program.
        exports: names to take from the program even if `setup`, or Python, defines them.
        functions: every function `test_*` that the tests define is a test, as under pytest.
    """

    program: str
    tests: tuple[str, ...]
    setup: str = ""
    exports: tuple[str, ...] = ()
    functions: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a job.

    Attributes:
        passed: tests passed.
        total: tests there were; 0 if it did not come to that.
        error: the first failure, as text.
        timed_out: the wall time ran out.
    """

    passed: int
    total: int
    error: str = ""
    timed_out: bool = False

    @property
    def right(self) -> bool:
        """Whether there were tests and all passed."""
        return self.total > 0 and self.passed == self.total


class Sandbox(Closing):
    """Boxes that run one job each at a time.

    Args:
        workers: number of boxes. Default: one per CPU core that this process may use.
        limits: what a job may use.
        kind: "bubblewrap" or "namespaces"; None takes bubblewrap where it is installed.

    Raises:
        SandboxUnavailable: no box can be made on this machine. There is no mode without one.
    """

    def __init__(
        self, workers: int | None = None, *, limits: Limits | None = None, kind: str | None = None
    ) -> None:
        self.kind = boxes.choose(kind)
        self.limits = limits or Limits()
        self._pool = WorkerPool(
            boxes.command(self.kind),
            workers=workers or len(os.sched_getaffinity(0)),
            deadline_seconds=self.limits.wall_seconds + _GRACE_SECONDS,
            environment={"PATH": os.environ.get("PATH", os.defpath)},
        )
        try:
            outcome = self.run([Job("x = 1", ("assert x == 1",))])[0]
            if not outcome.right:
                raise WorkerError(f"a trivial program failed: {outcome}")
        except (WorkerError, OSError) as error:
            self.close()
            raise SandboxUnavailable(
                f"no box of kind {self.kind!r} can be made here ({error}). Code is not run without "
                "one. Install bubblewrap, or let this user make user namespaces (in a container: "
                "run it with CAP_SYS_ADMIN, or with a seccomp profile that permits unshare)"
            ) from error

    def submit(self, job: Job, limits: Limits | None = None) -> Future[Any]:
        """Queues a job; waits while the queue is full. `outcome` reads the result.

        Args:
            job: the program and its tests.
            limits: other limits than the sandbox's; the wall time may be at most as long.
        """
        used = limits or self.limits
        if used.wall_seconds > self.limits.wall_seconds:
            raise ValueError(
                f"wall_seconds={used.wall_seconds} is over the sandbox's own limit of "
                f"{self.limits.wall_seconds}; make the sandbox with more"
            )
        head = {"program": _plain(job.program), "limits": dataclasses.asdict(used)}
        tests = {
            "tests": [_plain(test) for test in job.tests],
            "setup": _plain(job.setup),
            "exports": list(job.exports),
            "functions": job.functions,
        }
        return self._pool.submit(head, tests)

    def run(self, jobs: Sequence[Job], limits: Limits | None = None) -> list[Outcome]:
        """Outcomes of jobs, in their order."""
        return [outcome(each.result()) for each in [self.submit(job, limits) for job in jobs]]

    def processes(self) -> list[int]:
        """Process ids of the boxes that run now."""
        return self._pool.processes()

    def close(self) -> None:
        """Ends all boxes."""
        self._pool.close()


def outcome(answer: Answer | Lost) -> Outcome:
    """The outcome that a box's answer states."""
    if isinstance(answer, Lost):
        return Outcome(0, 0, f"the box {answer.reason}", timed_out=answer.reason == "timed out")
    return Outcome(
        passed=int(answer.get("passed", 0)),
        total=int(answer.get("total", 0)),
        error=str(answer.get("error", "")),
        timed_out=bool(answer.get("timed_out", False)),
    )


@functools.cache
def shared() -> Sandbox:
    """The sandbox that tasks use unless they are given one: one per process, never closed."""
    return Sandbox()


def _plain(text: str) -> str:
    """Text that can be compiled or refused; a lone surrogate could not even be sent."""
    return text.encode("utf-8", "replace").decode("utf-8")
