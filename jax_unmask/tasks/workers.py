"""A pool of worker processes for checks that are slow, may hang, or may crash.

Each worker is a process that answers frames on its standard input with frames on its standard
output (see `sandbox.inside.wire`), one job at a time. A thread per worker takes jobs from one
bounded queue. So `submit` waits where checks cannot keep up, and everything else goes on: the pool
overlaps with rollouts on the device. A job that is over its deadline, or whose worker dies, costs
its own result only; the worker is killed with all its children and replaced.
"""

import contextlib
import dataclasses
import json
import os
import queue
import select
import signal
import struct
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import IO, Any

from jax_unmask.runtime.files import Closing

_LENGTH = struct.Struct("!I")
_MAX_FRAME = 64 * 2**20
_START_SECONDS = 120.0
_WAITING = 64

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Lost:
    """Result of a job whose worker did not answer.

    Attributes:
        reason: "timed out" or "crashed".
    """

    reason: str


class WorkerError(OSError):
    """A worker process could not be started."""


class _Silent(Exception):
    """The worker has not answered within the deadline."""


class _Gone(Exception):
    """The worker has ended."""


class WorkerPool(Closing):
    """Runs jobs in worker processes.

    Args:
        command: the workers' command line. The process must first write one frame (a JSON object),
            then answer every job with one; `"last": true` in it asks for a new process.
        workers: number of processes; each is started when it gets its first job.
        deadline_seconds: time that a job may take, after which its worker is killed.
        environment: the workers' environment; None is a copy of this process's.

    Raises:
        ValueError: for fewer than one worker, or a deadline that is not positive.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        workers: int,
        deadline_seconds: float,
        environment: dict[str, str] | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        if not deadline_seconds > 0:
            raise ValueError(f"deadline_seconds={deadline_seconds} must be positive")
        self._waiting: queue.Queue[_Job | None] = queue.Queue(_WAITING * workers)
        self._closed = False
        self._workers = [_Worker(command, environment, deadline_seconds) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=_serve, args=(worker, self._waiting), daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()
        # Also if the pool is never closed.
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def submit(self, *frames: Any) -> Future[Answer | Lost]:
        """Queues a job; waits while `_WAITING` jobs per worker wait.

        Args:
            *frames: the job's frames, JSON-able.

        Returns:
            The worker's answer, or `Lost`. It holds a `WorkerError` if no worker can be started.

        Raises:
            RuntimeError: the pool has been closed.
        """
        if self._closed:
            raise RuntimeError("the pool has been closed")
        future: Future[Answer | Lost] = Future()
        self._waiting.put(_Job(b"".join(map(_frame, frames)), future))
        return future

    def processes(self) -> list[int]:
        """Process ids of the workers that run now."""
        running = (worker.process for worker in self._workers)
        return [process.pid for process in running if process is not None]

    def close(self) -> None:
        """Cancels what waits, ends all workers and waits for them."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._waiting.get_nowait()
                if job is not None:
                    job.future.cancel()
        for _ in self._threads:
            self._waiting.put(None)
        while any(thread.is_alive() for thread in self._threads):
            _kill_all(self._workers)  # Again and again: a thread may just be starting one.
            for thread in self._threads:
                thread.join(0.1)
        for worker in self._workers:
            worker.stop()


@dataclasses.dataclass(frozen=True)
class _Job:
    frames: bytes
    future: Future[Answer | Lost]


def _frame(message: Any) -> bytes:
    body = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def _serve(worker: "_Worker", waiting: queue.Queue[_Job | None]) -> None:
    while (job := waiting.get()) is not None:
        if not job.future.set_running_or_notify_cancel():
            continue
        try:
            result = worker.do(job.frames)
        except (WorkerError, OSError) as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)


def _kill_all(workers: "Sequence[_Worker]") -> None:
    for worker in workers:
        worker.kill()


class _Worker:
    """One worker process, started when needed."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str] | None, deadline_seconds: float
    ) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._command = list(command)
        self._environment = environment
        self._deadline_seconds = deadline_seconds
        self._lock = threading.Lock()

    def do(self, frames: bytes) -> Answer | Lost:
        """The answer to a job."""
        process = self._start() if self.process is None else self.process
        try:
            answer = _exchange(process, frames, time.monotonic() + self._deadline_seconds)
            if answer.get("last"):
                self.stop()
            return answer
        except _Silent:
            self.stop()
            return Lost("timed out")
        except _Gone:
            self.stop()
            return Lost("crashed")

    def kill(self) -> None:
        """Kills the process and its children; a waiting `do` raises."""
        with self._lock:
            if self.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kills the process and its children, and releases its pipes."""
        self.kill()
        with self._lock:
            process, self.process = self.process, None
        if process is None:
            return
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()

    def _start(self) -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                start_new_session=True,  # One signal reaches it with its children.
            )
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
            with self._lock:
                self.process = process
            try:
                _exchange(process, b"", time.monotonic() + _START_SECONDS)
            except (_Silent, _Gone) as error:
                self.stop()
                message = _tail(errors)
                raise WorkerError(f"{self._command[0]} does not start: {message}") from error
        return process


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode("utf-8", "replace").strip()[-2000:] or "it says nothing"


def _exchange(process: subprocess.Popen[bytes], frames: bytes, ended: float) -> Answer:
    """Writes frames and reads one."""
    assert process.stdin is not None and process.stdout is not None
    sink, source = process.stdin.fileno(), process.stdout.fileno()
    unsent, got, wanted = memoryview(frames), bytearray(), _LENGTH.size
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if unsent:
        poll.register(sink, select.POLLOUT)
    try:
        while True:
            left = ended - time.monotonic()
            ready = dict(poll.poll(1000 * left)) if left > 0 else {}
            if not ready:
                raise _Silent
            if sink in ready:
                unsent = unsent[os.write(sink, unsent) :]
                if not unsent:
                    poll.unregister(sink)
            if source in ready:
                part = os.read(source, wanted - len(got))
                if not part:
                    raise _Gone
                got += part
                if len(got) == wanted == _LENGTH.size:
                    wanted += min(_LENGTH.unpack(got)[0], _MAX_FRAME)
                if len(got) == wanted:
                    return json.loads(got[_LENGTH.size :])
    except (OSError, ValueError) as error:  # A closed pipe; no JSON.
        raise _Gone from error
