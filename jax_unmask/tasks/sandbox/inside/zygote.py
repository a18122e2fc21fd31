"""First process of a box: gives up its privileges, then forks two processes per job.

It reads jobs as frames from descriptor 0 and writes verdicts to descriptor 1. A job is two frames:
the program with its limits, and the tests. Only the process that runs the tests reads the second
one, so the program's process, forked before, cannot find tests in its memory.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from typing import Any

from . import judge, kernel, program, wire

SCRATCH = "/scratch"
_NOBODY = 65534
_MAX_LEFT_OVERS = 1000
_POLL_SECONDS = 0.05
# Imported once, here: children find them in place.
_USUAL = (
    "bisect", "collections", "copy", "dataclasses", "functools", "heapq", "itertools", "json",
    "math", "operator", "random", "re", "statistics", "string", "sys", "time", "timeit", "typing",
)  # fmt: skip


def main() -> None:
    """Serves jobs until descriptor 0 ends."""
    for name in _USUAL:
        __import__(name)
    filtered = lock()
    wire.send(1, {"ready": True, "filtered": filtered})
    while True:
        try:
            job = wire.receive(0)
        except wire.Broken:
            return
        verdict = _do(job)
        # A fresh box costs less than finding out what was left.
        last = not _clean_scratch()
        wire.send(1, {**verdict, "last": last})
        if last:
            return


def lock() -> bool:
    """Gives up, for good, all privileges that a program could use against the box.

    Returns:
        Whether system calls are filtered.
    """
    if os.geteuid() == 0:
        # The kernel does not count the processes of the real root.
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # A user namespace of its own, so that processes are counted per box. It maps no user, so nobody
    # inside can make another one, and with it gain capabilities.
    kernel.unshare(kernel.CLONE_NEWUSER)
    kernel.drop_capabilities()
    kernel.forbid_new_privileges()
    kernel.hide_memory()
    os.umask(0o077)
    os.chdir(SCRATCH)
    return kernel.filter_system_calls()


def _do(job: dict[str, Any]) -> dict[str, Any]:
    limits = job["limits"]
    program_end, judge_end = socket.socketpair()
    verdict_read, verdict_write = os.pipe()
    ended = time.monotonic() + limits["wall_seconds"]
    if os.fork() == 0:
        _become_child(limits, program_end.fileno(), ())
        _exit_after(program.serve, 3, job["program"])
    if os.fork() == 0:
        os.dup2(0, 200)  # The second frame; `_become_child` puts /dev/null in its place.
        _become_child(limits, judge_end.fileno(), (verdict_write, 200))
        _exit_after(_judge, 3, 4, 5)
    program_end.close()
    judge_end.close()
    os.close(verdict_write)
    try:
        return _await(verdict_read, ended, limits["memory_bytes"])
    finally:
        os.close(verdict_read)
        _end_all()


def _judge(descriptor: int, verdict: int, jobs: int) -> None:
    spec = wire.receive(jobs)
    os.close(jobs)
    wire.send(verdict, {"read": True})
    wire.send(verdict, judge.judge(descriptor, spec))


def _await(verdict: int, ended: float, memory_bytes: int) -> dict[str, Any]:
    """The verdict, or what kept it from being given."""
    poll = select.poll()
    poll.register(verdict, select.POLLIN)
    poll.register(0, 0)  # Reports hang-ups only.
    began = False
    while True:
        events = dict(poll.poll(1000 * _POLL_SECONDS))
        if events.get(0, 0) & (select.POLLHUP | select.POLLERR):
            os._exit(0)  # No reader is left; all other processes end with the first one.
        if verdict in events:
            try:
                message = wire.receive(verdict)
            except wire.Broken:
                if not began:
                    os._exit(1)  # Where the next job starts is not known.
                return {"error": "the tests' process died"}
            if "read" not in message:
                return message
            began = True
        elif time.monotonic() > ended:
            if not began:
                os._exit(1)
            return {"timed_out": True, "error": "out of time"}
        elif _memory_in_use() > memory_bytes:
            if not began:
                os._exit(1)
            return {"error": "out of memory"}


def _memory_in_use() -> int:
    """Bytes that all processes of the box but this one have in memory."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm", "rb") as file:
                    fields = file.read().split()
                    pages += int(fields[1]) - int(fields[2])  # Resident, not shared.
            except OSError:
                continue  # It has ended meanwhile.
    return pages * resource.getpagesize()


def _become_child(limits: dict[str, Any], connection: int, others: tuple[int, ...]) -> None:
    """Descriptors 3, 4, ... are the connection and the others; 0, 1, 2 lead nowhere."""
    os.setsid()
    for target, source in enumerate((connection, *others), start=100):
        os.dup2(source, target)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(nowhere, target)
    count = 1 + len(others)
    for target in range(count):
        os.dup2(100 + target, 3 + target)
    os.closerange(3 + count, 1024)
    cpu = limits["cpu_seconds"]
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    # An exception for the program that writes too much, not death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kernel.hide_memory()


def _exit_after(function: Any, *args: Any) -> None:
    try:
        function(*args)
    finally:
        os._exit(0)


def _end_all() -> None:
    """Ends every other process of the box, and waits until they are gone."""
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            if not any(name.isdigit() and name != "1" for name in os.listdir("/proc")):
                return


def _clean_scratch() -> bool:
    """Empties the scratch directory; False if that would take long or fails."""
    seen = 0
    try:
        waiting = [SCRATCH]
        directories = []
        while waiting:
            directory = waiting.pop()
            if directory != SCRATCH:
                os.chmod(directory, stat.S_IRWXU)
            for entry in os.scandir(directory):
                seen += 1
                if seen > _MAX_LEFT_OVERS:
                    return False
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    directories.append(entry.path)
                else:
                    os.unlink(entry.path)
        for directory in reversed(directories):
            os.rmdir(directory)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit("run me as `python -I -S -c 'from inside import zygote; zygote.main()'`")
