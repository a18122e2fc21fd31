"""Ends a training run again and again, and compares what comes out with a run left alone."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import comparison
from jax_unmask.commands import command_line
from jax_unmask.runtime.checkpoints import DIRECTORY, QUARANTINE
from jax_unmask.runtime.files import atomic_write
from jax_unmask.runtime.preemption import OUT_OF_TIME

_EPILOG = """\
Everything else is handed to `python -m jax_unmask.train`. Both runs go under --workdir; the same
command again uses the undisturbed run that is there, and kills a new one. Moments are drawn: while
the process starts (imports, loading, restoring), anywhere in a step, or while a checkpoint is being
written. A checkpoint per step or two (--config.checkpoint.every=1) makes for many of the last.

Compared are metrics.jsonl, exported weights, and the last checkpoint with parameters, optimiser,
keys and position of the data, bit by bit. The status is 0 if all are the same.

example:
  python tests/tools/chaos.py --workdir=/tmp/chaos --kills=50 --config=configs/quickstart.py \\
    --config.checkpoint.every=1 --config.eval.after_training=False
"""
Moment = Literal["start", "step", "save"]
MOMENTS: tuple[tuple[Moment, float], ...] = (("start", 0.2), ("step", 0.4), ("save", 0.4))
"""When to kill, with the probability of each."""
_SIGNALS: dict[str, tuple[signal.Signals, ...]] = {
    "kill": (signal.SIGKILL,),
    "term": (signal.SIGTERM,),
    "both": (signal.SIGKILL, signal.SIGTERM),
}
_POLL_SECONDS = 0.005
# Nothing waits longer than this for a process to get on: it must be hanging.
_PATIENCE_SECONDS = 1800.0
logger = logging.getLogger("jax_unmask.chaos")

Start = Callable[[pathlib.Path], subprocess.Popen[bytes]]
"""Starts the program on a workdir."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """One end of a process.

    Attributes:
        signal: name of the signal.
        moment: what was waited for: "start", "step" or "save".
        step: last step in the metrics at that time.
        saving: whether a checkpoint was left half written.
        seconds: age of the process.
    """

    signal: str
    moment: Moment
    step: int
    saving: bool
    seconds: float


class Unexpected(ValueError):
    """The program ended in a way that no signal explains."""


class _Watched:
    """A process, and how far it has got."""

    def __init__(self, process: subprocess.Popen[bytes], workdir: pathlib.Path) -> None:
        self.process = process
        self._workdir = workdir
        self._began = self._moved = time.monotonic()
        self._started = time.time()
        self.step_seconds = 0.0
        # A resumed run cuts off the lines behind its checkpoint; it trains once it writes on.
        self._lowest = self._last = self.step()

    def step(self) -> int:
        """Last step in the metrics; 0 where there is none."""
        path = self._workdir / comparison.METRICS
        whole = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        # The last line may be half written.
        lines = [line for line in whole[-2:] if line.endswith(b"\n")]
        return json.loads(lines[-1])["step"] if lines else 0

    def trains(self) -> bool:
        """Whether it has finished a step of its own."""
        return self._last > self._lowest

    def half_written(self) -> list[pathlib.Path]:
        """Checkpoints that this process began and has not committed."""
        found = []
        for path in (self._workdir / DIRECTORY).glob("*.orbax-checkpoint-tmp*"):
            with contextlib.suppress(FileNotFoundError):  # Committed at this moment.
                # Those of the process before lie there until this one is under way.
                if path.stat().st_mtime > self._started:
                    found.append(path)
        return found

    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began

    def alive(self) -> Iterator[int]:
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
            time.sleep(_POLL_SECONDS)


class Killer:
    """Ends one run after the other at moments that a seed decides, as far as clocks allow.

    Args:
        start: starts the program on a workdir.
        steps: steps of a whole run.
        signals: drawn from for each kill.
        seed: of all draws.
    """

    def __init__(
        self, start: Start, steps: int, signals: Sequence[signal.Signals], seed: int
    ) -> None:
        self._start = start
        self._steps = steps
        self._signals = signals
        self._random = random.Random(seed)
        self._starting_seconds = 5.0

    def run(self, workdir: pathlib.Path, kills: int) -> list[Kill]:
        """Runs the program to its end, killing it on the way.

        Args:
            workdir: where; must not exist.
            kills: how many to spread over the run.

        Returns:
            Those kills that it got before it ended.

        Raises:
            Unexpected: it ended by itself and not with status 0, or hangs.
        """
        # Near the end nothing is left to wait for; the last step has no "after".
        after = sorted(self._random.randrange(max(1, self._steps - 1)) for _ in range(kills))
        done: list[Kill] = []
        for target in after:
            kill = self._kill(workdir, target)
            if kill is None:
                break
            done.append(kill)
            logger.info(
                "%d of %d: %s after step %d%s, %.1f s after its start",
                *(len(done), kills, kill.signal, kill.step),
                ", in the midst of a checkpoint" if kill.saving else "",
                kill.seconds,
            )
        watched = _Watched(self._start(workdir), workdir)
        for _ in watched.alive():
            pass
        self._expect(watched, 0)
        return done

    def _kill(self, workdir: pathlib.Path, target: int) -> Kill | None:
        """Starts the program, and ends it after step `target`; None if it was through before."""
        (moment,) = self._random.choices(*zip(*MOMENTS, strict=True))
        number = self._random.choice(self._signals)
        share = self._random.random()
        watched = _Watched(self._start(workdir), workdir)
        if not self._wait(watched, moment, target, share):
            self._expect(watched, 0)
            return None
        step, age = watched.step(), watched.age()
        watched.process.send_signal(number)
        watched.process.wait(timeout=_PATIENCE_SECONDS)
        # SIGTERM saves, where the loop has begun; before that there is nothing to save.
        saved = (0, OUT_OF_TIME) if number == signal.SIGTERM else ()
        self._expect(watched, -number, *saved)
        return Kill(number.name, moment, step, bool(watched.half_written()), age)

    def _wait(self, watched: _Watched, moment: Moment, target: int, share: float) -> bool:
        """Waits for the moment; False if the program ended before."""
        until = None
        for step in watched.alive():
            if moment == "start":
                if watched.trains() or watched.age() >= share * self._starting_seconds:
                    return True
                continue
            if not watched.trains():
                self._starting_seconds = max(1.0, watched.age())
                continue
            if step < target:
                continue
            if moment == "save":
                if watched.half_written():
                    time.sleep(share * 0.02)
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


def torture(
    start: Start,
    workdir: pathlib.Path,
    *,
    kills: int,
    signals: Sequence[signal.Signals] = (signal.SIGKILL,),
    seed: int = 0,
) -> tuple[list[Kill], list[str]]:
    """Runs a program undisturbed, then with kills, until it got all of them.

    A run that ends before it got its kills is followed by another.

    Args:
        start: starts the program on a workdir.
        workdir: receives `undisturbed/` (used as it is, if it is complete) and `killed-0/`, ...
        kills: how many.
        signals: drawn from for each kill.
        seed: of the moments.

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
    killer = Killer(start, steps, signals, seed)
    done: list[Kill] = []
    different: list[str] = []
    names = (f"killed-{number}" for number in range(sys.maxsize))
    while len(done) < kills:
        run = next(workdir / name for name in names if not (workdir / name).exists())
        done += killer.run(run, kills - len(done))
        different += [f"{run.name}: {name}" for name in comparison.differences(undisturbed, run)]
        logger.info("%s is complete: %s", run, "different" if different else "identical")
    return done, different


def summary(kills: Sequence[Kill], different: Sequence[str], workdir: pathlib.Path) -> str:
    """What happened, as text."""
    names = collections.Counter(kill.signal for kill in kills)
    moments = collections.Counter(kill.moment for kill in kills)
    saving = sum(kill.saving for kill in kills)
    damaged = list(workdir.glob(f"*/{QUARANTINE}/*"))
    lines = [
        f"kills       {len(kills)}: " + ", ".join(f"{n} {name}" for name, n in names.items()),
        f"moments     {moments['start']} while starting, {moments['step']} in a step, "
        f"{moments['save']} while a checkpoint was written",
        f"checkpoints {saving} left half written and ignored, {len(damaged)} damaged",
        f"result      {'DIFFERENT: ' + ', '.join(different) if different else 'identical'}",
    ]
    return "\n".join(lines)


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
    add("--signal", choices=sorted(_SIGNALS), default="kill", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    return described


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options, settings = parser().parse_known_args(arguments)
    if options.kills < 1:
        parser().error(f"--kills={options.kills}: it must be positive")
    command_line.set_up_logging()
    command = [sys.executable, "-m", "jax_unmask.train", *settings]
    # Small programs are cached too: most of a start would else be compiling them.
    environment = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | os.environ

    def start(workdir: pathlib.Path) -> subprocess.Popen[bytes]:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with workdir.with_name(f"{workdir.name}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, f"--workdir={workdir}"], env=environment, stdout=log, stderr=log
            )

    logger.info("%s", shlex.join(command))
    with command_line.clear_errors():
        kills, different = torture(
            start,
            options.workdir,
            kills=options.kills,
            signals=_SIGNALS[options.signal],
            seed=options.seed,
        )
    record = {
        "command": command[2:],
        "seed": options.seed,
        "kills": [dataclasses.asdict(kill) for kill in kills],
        "different": different,
    }
    atomic_write(options.workdir / "chaos.json", json.dumps(record, indent=2) + "\n")
    print(summary(kills, different, options.workdir))
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
