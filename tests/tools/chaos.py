"""Ends a training run again and again, and compares what comes out with a run left alone."""

import argparse
import collections
import contextlib
import dataclasses
import json
import logging
import math
import multiprocessing
import os
import pathlib
import random
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, get_args

import comparison
from jax_unmask.commands import command_line
from jax_unmask.runtime.checkpoints import DIRECTORY, QUARANTINE
from jax_unmask.runtime.files import atomic_write
from jax_unmask.runtime.preemption import OUT_OF_TIME

_EPILOG = """\
Everything else is handed to `python -m jax_unmask.train` (or eval, with --program=eval). Both runs
go under --workdir; the same command again uses the undisturbed run that is there, and disturbs a
new one. Moments are drawn: while the process starts (imports, loading, restoring), anywhere in a
step or between two results, while a checkpoint is being written, while an old one is being deleted,
while the result or a report is being written. A checkpoint per step or two
(--config.checkpoint.every=1) makes for many of these.

With --forked all starts but those of several processes are forks of one process that has imported
the package: imports take no time, and are never disturbed.

kill and term end the process by a signal; stop holds it for a second, lets it go on, and kills it
within a step; full fills the disk, and expects one error that names a path (the runs then lie on a
small disk in memory, which needs a user namespace).

Compared are metrics.jsonl, exported weights, and the last checkpoint with parameters, optimiser,
keys and position of the data, bit by bit; results, outcomes, tables and reports but for what a
clock measured. The status is 0 if all are the same.

example:
  python tests/tools/chaos.py --workdir=/tmp/chaos --kills=50 --config=configs/quickstart.py \\
    --config.checkpoint.every=1 --config.eval.after_training=False
"""
Way = Literal["kill", "term", "stop", "full"]
"""A way to disturb a process."""
Moment = Literal["start", "step", "save", "delete", "export"]
MOMENTS: dict[Moment, float] = {
    "start": 0.15,
    "step": 0.3,
    "save": 0.25,
    "delete": 0.15,
    "export": 0.15,
}
"""Moments of a disturbance, with the probability of each."""
EVALUATING: tuple[Moment, ...] = ("start", "step", "export")
"""Those of an evaluation, which writes no checkpoints."""
_EXPORTS = ("model/*", "policy/*", "summary.md", "report.html", "*.png", "outcomes/*")
_POLL_SECONDS = 0.005
# A checkpoint of a small model is deleted, or exported, within a few milliseconds.
_SHORT_POLL_SECONDS = 0.0002
# Nothing waits longer than this for a process to get on: it must be hanging.
_PATIENCE_SECONDS = 900.0
_DISK, _BALLOON = "disk", "balloon"
logger = logging.getLogger("jax_unmask.chaos")


class Process(Protocol):
    """A started program, of which `subprocess.Popen` is the usual kind."""

    pid: int

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[pathlib.Path], Process]
"""Starts the program on a workdir."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """One end of a process.

    Attributes:
        way: what was done to it.
        moment: what was waited for.
        step: progress at that time, see `_Watched.step`.
        saving: whether a checkpoint was left half written.
        seconds: age of the process.
    """

    way: Way
    moment: Moment
    step: int
    saving: bool
    seconds: float


class Unexpected(ValueError):
    """The program ended in a way that nothing explains."""


class _Watched:
    """A process, and how far it has got."""

    def __init__(self, process: Process, workdir: pathlib.Path) -> None:
        self.process = process
        self._workdir = workdir
        self._began = self._moved = time.monotonic()
        self._started = time.time()
        self.step_seconds = 0.0
        # A resumed run cuts off the lines behind its checkpoint; it trains once it writes on.
        self._lowest = self._last = self.step()

    def step(self) -> int:
        """Last steps in the metrics of all stages, and rows of results; 0 where there are none."""
        found = 0
        for path in (*self._files(comparison.METRICS), *self._files(comparison.RESULTS)):
            whole = path.read_bytes().splitlines(keepends=True)
            # The last line may be half written.
            lines = [line for line in whole if line.endswith(b"\n")]
            if path.name == comparison.RESULTS:
                found += len(lines)
            elif lines:
                found += json.loads(lines[-1])["step"]
        return found

    def _files(self, pattern: str) -> Iterator[pathlib.Path]:
        """Files of the workdir, and of the stages of a curriculum."""
        yield from self._workdir.glob(pattern)
        yield from self._workdir.glob(f"0*-*/{pattern}")

    def trains(self) -> bool:
        """Whether it has finished a step of its own."""
        return self._last > self._lowest

    def half_written(self) -> list[pathlib.Path]:
        """Checkpoints that this process began and has not committed."""
        return self._own(f"{DIRECTORY}/*.orbax-checkpoint-tmp*")

    def is_amid(self, moment: Moment) -> bool:
        """Whether it is writing or deleting a checkpoint, or has begun to write its results."""
        if moment == "save":
            return bool(self.half_written())
        if moment == "delete":
            return any(self._files(f"{DIRECTORY}/deleted/*"))
        return any(self._own(pattern) for pattern in _EXPORTS)

    def _own(self, pattern: str) -> list[pathlib.Path]:
        found = []
        for path in self._files(pattern):
            with contextlib.suppress(FileNotFoundError):  # Committed at this moment.
                # Those of the process before lie there until this one is under way.
                if path.stat().st_mtime > self._started:
                    found.append(path)
        return found

    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began

    def alive(self, poll: float = _POLL_SECONDS) -> Iterator[int]:
        """Its steps, again and again until it ends by itself."""
        while self.process.poll() is None:
            now = self.step()
            if now != self._last:
                self.step_seconds, self._moved = time.monotonic() - self._moved, time.monotonic()
            self._lowest, self._last = min(self._lowest, now), now
            if time.monotonic() - self._moved > _PATIENCE_SECONDS:
                self.process.kill()
                raise Unexpected(f"no step for {_PATIENCE_SECONDS:.0f} s after step {now}")
            yield now
            time.sleep(poll)


class Killer:
    """Disturbs one run after the other at moments that a seed decides, as far as clocks allow.

    Args:
        start: starts the program on a workdir; with several processes, their launcher.
        steps: steps of a whole run.
        ways: drawn from for each disturbance.
        seed: of all draws.
        moments: drawn from too.
        until: no disturbance begins later than this, as of `time.monotonic`.
    """

    def __init__(
        self,
        start: Start,
        steps: int,
        ways: Sequence[Way],
        seed: int,
        moments: Sequence[Moment] = tuple(MOMENTS),
        until: float = math.inf,
    ) -> None:
        self.until = until
        self._start = start
        self._steps = steps
        self._ways = ways
        self._moments = moments
        self._random = random.Random(seed)
        self._starting_seconds = 5.0

    def run(self, workdir: pathlib.Path, kills: int) -> list[Kill]:
        """Runs the program to its end, disturbing it on the way.

        Args:
            workdir: where; must not exist.
            kills: how many to spread over the run.

        Returns:
            Those that it got before it ended.

        Raises:
            Unexpected: it ended by itself and not with status 0, or hangs.
        """
        weights = [MOMENTS[moment] for moment in self._moments]
        todo = []
        for moment in self._random.choices(self._moments, weights, k=kills):
            # Near the end nothing is left to wait for; exports come after the last step.
            target = self._random.randrange(max(1, self._steps - 1))
            todo.append((self._steps if moment == "export" else target, moment))
        done: list[Kill] = []
        for target, moment in sorted(todo):
            if time.monotonic() > self.until:
                break
            kill = self._kill(workdir, target, moment)
            if kill is None:
                break
            done.append(kill)
            logger.info(
                "%d of %d: %s (%s) after step %d%s, %.1f s after its start",
                *(len(done), kills, kill.way, kill.moment, kill.step),
                ", in the midst of a checkpoint" if kill.saving else "",
                kill.seconds,
            )
        watched = _Watched(self._start(workdir), workdir)
        for _ in watched.alive():
            pass
        self._expect(watched, 0)
        return done

    def _kill(self, workdir: pathlib.Path, target: int, moment: Moment) -> Kill | None:
        """Starts the program, and ends it after step `target`; None if it was through before."""
        way, share = self._random.choice(self._ways), self._random.random()
        watched = _Watched(self._start(workdir), workdir)
        if not self._wait(watched, moment, target, share):
            self._expect(watched, 0)
            return None
        step, age, saving = watched.step(), watched.age(), bool(watched.half_written())
        allowed = (128 + signal.SIGKILL,)  # The status of a launcher.
        if way == "full":
            with _full_disk(workdir.parent):
                watched.process.wait(timeout=_PATIENCE_SECONDS)
            self._expect(watched, 0, 1)
            if watched.process.returncode:
                _require_one_error(workdir)
        elif way == "term":
            watched.process.terminate()
            # It saves, where the loop has begun; before that there is nothing to save.
            allowed = (0, -signal.SIGTERM, 128 + signal.SIGTERM, OUT_OF_TIME)
        else:
            victims = _children(watched.process.pid) or [watched.process.pid]
            victim = victims[int(share * len(victims))]
            if way == "stop":
                os.kill(victim, signal.SIGSTOP)
                time.sleep(0.5 + share)
                os.kill(victim, signal.SIGCONT)
                time.sleep(share * watched.step_seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            allowed = (-signal.SIGKILL, *allowed, 0)
        watched.process.wait(timeout=_PATIENCE_SECONDS)
        if way != "full":
            self._expect(watched, *allowed)
        if way != "term" and watched.process.returncode == 0:
            return None  # It was quicker.
        return Kill(way, moment, step, saving, age)

    def _wait(self, watched: _Watched, moment: Moment, target: int, share: float) -> bool:
        """Waits for the moment; False if the program ended before."""
        until = None
        poll = _SHORT_POLL_SECONDS if moment in ("delete", "export") else _POLL_SECONDS
        for step in watched.alive(poll):
            if moment == "start":
                if watched.trains() or watched.age() >= share * self._starting_seconds:
                    return True
                continue
            if moment == "export" and watched.is_amid("export"):
                time.sleep(share * 0.02)
                return True
            if not watched.trains():
                self._starting_seconds = max(1.0, watched.age())
                continue
            if step < target or moment == "export":
                continue
            if moment in ("save", "delete"):
                if watched.is_amid(moment):
                    time.sleep(share * (0.02 if moment == "save" else 0.001))
                    return True
                continue
            until = until or watched.age() + share * watched.step_seconds
            if watched.age() >= until:
                return True
        return False

    @staticmethod
    def _expect(watched: _Watched, *allowed: int) -> None:
        if watched.process.returncode not in allowed:
            raise Unexpected(
                f"the program ended with status {watched.process.returncode} after step "
                f"{watched.step()}; its output is beside its workdir"
            )


def _children(pid: int) -> list[int]:
    """Processes of the program, if it is the launcher of several."""
    found = []
    for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"jax_unmask." in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found if len(found) > 1 else []


@contextlib.contextmanager
def _full_disk(directory: pathlib.Path) -> Iterator[None]:
    """Fills the disk of a directory for a while."""
    balloon = directory / _BALLOON
    with balloon.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        balloon.unlink()


def log_of(workdir: pathlib.Path) -> pathlib.Path:
    """The file of a run's output: beside its workdir, but never on the disk that gets full."""
    directory = workdir.parent.parent if workdir.parent.name == _DISK else workdir.parent
    return directory / f"{workdir.name}.log"


def _require_one_error(workdir: pathlib.Path) -> None:
    """The last message must be an error about the full disk that names a path, and no traceback."""
    text = log_of(workdir).read_text(errors="replace")
    last = text[text.rindex(_STARTS) :] if _STARTS in text else text
    errors = [line for line in last.splitlines() if "error: " in line and "launcher" not in line]
    if "Traceback" in last or not any("No space left" in e and "/" in e for e in errors):
        raise Unexpected(f"a full disk ended {workdir} in another way: {last[-2000:]}")


_STARTS = "=== starts"


def torture(
    start: Start,
    workdir: pathlib.Path,
    *,
    kills: int,
    ways: Sequence[Way] = ("kill",),
    seed: int = 0,
    moments: Sequence[Moment] = tuple(MOMENTS),
    minutes: float = math.inf,
) -> tuple[list[Kill], list[str]]:
    """Runs a program undisturbed, then with kills, until it got all of them.

    A run that ends before it got its kills is followed by another.

    Args:
        start: starts the program on a workdir.
        workdir: receives `undisturbed/` (used as it is, if it is complete) and `killed-0/`, ...
        kills: how many.
        ways: drawn from for each kill.
        seed: of the moments.
        moments: drawn from too.
        minutes: after these, the run under way is the last, and gets no more kills.

    Returns:
        The kills, and what differs from the undisturbed run, preceded by the run's name.

    Raises:
        Unexpected: a run failed by itself.
    """
    undisturbed = workdir / "undisturbed"
    watched = _Watched(start(undisturbed), undisturbed)
    for _ in watched.alive():
        pass
    Killer._expect(watched, 0)
    steps = watched.step()
    killer = Killer(start, steps, ways, seed, moments, time.monotonic() + 60 * minutes)
    done: list[Kill] = []
    different: list[str] = []
    names = (f"killed-{number}" for number in range(sys.maxsize))
    while len(done) < kills and time.monotonic() <= killer.until:
        run = next(workdir / name for name in names if not (workdir / name).exists())
        done += killer.run(run, kills - len(done))
        different += [f"{run.name}: {name}" for name in comparison.differences(undisturbed, run)]
        logger.info("%s is complete: %s", run, "different" if different else "identical")
    return done, different


def summary(kills: Sequence[Kill], different: Sequence[str], workdir: pathlib.Path) -> str:
    """A summary of the disturbances, as text."""
    ways = collections.Counter(kill.way for kill in kills)
    moments = collections.Counter(kill.moment for kill in kills)
    saving = sum(kill.saving for kill in kills)
    damaged = list(workdir.glob(f"*/{QUARANTINE}/*"))
    lines = [
        f"kills       {len(kills)}: " + ", ".join(f"{n} {name}" for name, n in ways.items()),
        f"moments     {moments['start']} while starting, {moments['step']} in a step, "
        f"{moments['save']} while a checkpoint was written, {moments['delete']} while one was "
        f"deleted, {moments['export']} while results were written",
        f"checkpoints {saving} left half written and ignored, {len(damaged)} damaged",
        f"result      {'DIFFERENT: ' + ', '.join(different) if different else 'identical'}",
    ]
    return "\n".join(lines)


def starter(settings: Sequence[str], *, program: str = "train", processes: int = 1) -> Start:
    """Starts a command of the package, by the launcher if it is to be several processes.

    Args:
        settings: its arguments but for --workdir.
        program: the command.
        processes: how many, each with a CPU device of its own.
    """
    command = [sys.executable, "-m", f"jax_unmask.{program}", *settings]
    if processes > 1:
        launcher = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
        options = (f"-n={processes}", "--cpu_devices=1", "--grace_seconds=5", "--")
        command = [sys.executable, str(launcher), *options, *command]
    # Small programs are cached too: most of a start would else be compiling them.
    environment = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | os.environ

    def start(workdir: pathlib.Path) -> Process:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with log_of(workdir).open("ab") as log:
            log.write(f"{_STARTS} {shlex.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [*command, f"--workdir={workdir}"], env=environment, stdout=log, stderr=log
            )

    return start


class _Forked:
    """A command of the package as a fork of a server that has imported it, like a `Popen`."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return self.returncode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def forking_starter(settings: Sequence[str], *, program: str = "train") -> Start:
    """As `starter`, but forks a process that has imported everything."""
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # The server finds modules as this process does.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chaos", *_IMPORTED])

    def start(workdir: pathlib.Path) -> Process:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        command = [f"jax_unmask.{program}", *settings, f"--workdir={workdir}"]
        process = context.Process(target=_run_command, args=(command, log_of(workdir)))
        process.start()
        return _Forked(process)

    return start


_IMPORTED = (
    "jax_unmask.commands.train",
    "jax_unmask.commands.eval",
    "jax_unmask.evaluation.sweep",
    "jax_unmask.evaluation.reporting",
    "jax_unmask.recipes.policy_environments",
    "jax_unmask.recipes.state_sft",
    "jax_unmask.recipes.tracerl",
    "matplotlib.pyplot",
    "transformers.tokenization_utils_fast",
)


def _run_command(command: Sequence[str], log: pathlib.Path) -> None:
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    print(_STARTS, shlex.join(command), flush=True)
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def on_a_small_disk(workdir: pathlib.Path, megabytes: int) -> list[str]:
    """The start of a command that mounts a disk in memory below a workdir, and then goes on."""
    mount = f'mkdir -p "$0" && mount -t tmpfs -o size={megabytes}m none "$0" && exec "$@"'
    return [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        mount,
        str(workdir / _DISK),
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(
        prog="python tests/tools/chaos.py",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = described.add_argument
    add("--workdir", type=pathlib.Path, required=True, help="directory of all runs")
    add("--kills", type=int, default=50, help="how many; default: %(default)s")
    add("--minutes", type=float, default=math.inf, help="fewer, if they take longer than this")
    add("--ways", default="kill", help="some of kill,term,stop,full; default: %(default)s")
    add("--moments", help=f"some of {','.join(MOMENTS)}; default: all that there are")
    add("--program", choices=("train", "eval"), default="train", help="default: %(default)s")
    add("--processes", type=int, default=1, help="of each run; default: %(default)s")
    add("--forked", action="store_true", help="start by forks, see above")
    add("--disk_mb", type=int, default=10, help="size where the disk gets full; %(default)s")
    add("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    return described


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options, settings = parser().parse_known_args(arguments)
    if options.kills < 1:
        parser().error(f"--kills={options.kills}: it must be positive")
    default = EVALUATING if options.program == "eval" else tuple(MOMENTS)
    ways = options.ways.split(",")
    moments = options.moments.split(",") if options.moments else default
    for name, given, known in (("ways", ways, get_args(Way)), ("moments", moments, MOMENTS)):
        if not set(given) <= set(known):
            parser().error(f"--{name}={','.join(given)}: it must be some of {','.join(known)}")
    command_line.set_up_logging()
    directory = options.workdir.absolute()
    if "full" in ways:
        directory /= _DISK
        if not os.path.ismount(directory):
            again = on_a_small_disk(options.workdir.absolute(), options.disk_mb)
            own = sys.argv[1:] if arguments is None else list(arguments)
            command = [*again, sys.executable, __file__, *own]
            os.execvp(command[0], command)
    logger.info("%s", shlex.join(settings))
    if options.forked and options.processes > 1:
        parser().error("--forked: several processes are started by their launcher")
    if options.forked:
        start = forking_starter(settings, program=options.program)
    else:
        start = starter(settings, program=options.program, processes=options.processes)
    with command_line.clear_errors():
        kills, different = torture(
            start,
            directory,
            kills=options.kills,
            ways=ways,
            seed=options.seed,
            moments=moments,
            minutes=options.minutes,
        )
    record = {
        "command": [options.program, *settings],
        "processes": options.processes,
        "seed": options.seed,
        "kills": [dataclasses.asdict(kill) for kill in kills],
        "different": different,
    }
    atomic_write(options.workdir / "chaos.json", json.dumps(record, indent=2) + "\n")
    print(summary(kills, different, directory))
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
