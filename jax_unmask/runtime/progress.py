"""Progress of a run for the terminal, and the time of its phases."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

import jax
import tqdm

from jax_unmask.runtime.closing import Closing

Clock = Callable[[], float]


class Progress(Closing):
    """A progress bar with rate and time left, on process 0.

    On a terminal it is a bar; elsewhere (a log file, CI) one line every few seconds.

    Args:
        total: steps of the whole run.
        initial: steps done before this process began (after a resume); they don't count towards
            the rate.
        title: words before the bar.
        seconds_per_line: least time between two lines where there is no terminal.
        stream: where to write.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        title: str = "",
        seconds_per_line: float = 10.0,
        stream: TextIO | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.total = total
        self.title = title
        self._initial = initial
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = clock()
        self._seconds_per_line = seconds_per_line
        self._last_line = -float("inf")
        self._is_shown = jax.process_index() == 0
        self._bar: tqdm.tqdm | None = None
        if self._is_shown and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=initial,
                desc=title or None,
                file=self._stream,
                dynamic_ncols=True,
                unit="step",
            )

    def update(self, step: int, shown: Mapping[str, float] | None = None) -> None:
        """Moves to a step.

        Args:
            step: steps done so far, counted from the beginning of the run.
            shown: numbers to show beside it, such as {"reward": 0.41, "nfe": 18.2}.
        """
        if self._bar is not None:
            if shown:
                self._bar.set_postfix(_format(shown), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._is_shown:
            now = self._clock()
            if now - self._last_line >= self._seconds_per_line or step >= self.total:
                self._last_line = now
                self._stream.write(self._line(step, now, shown or {}) + "\n")
                self._stream.flush()

    def _line(self, step: int, now: float, shown: Mapping[str, float]) -> str:
        elapsed = now - self._start
        done = step - self._initial
        parts = [f"{self.title + ' ' if self.title else ''}{step}/{self.total}"]
        if done > 0 and elapsed > 0:
            left = (self.total - step) * elapsed / done
            parts.append(f"{done / elapsed:.3g} steps/s")
            parts.append(f"{_duration(elapsed)} elapsed, {_duration(left)} left")
        parts.extend(f"{key} {text}" for key, text in _format(shown).items())
        return " | ".join(parts)

    def close(self) -> None:
        """Leaves the bar as it is and frees the line below it."""
        if self._bar is not None:
            self._bar.close()


class Timer:
    """Wall time by phase of a step: rollout, reward, update, checkpoint.

    JAX returns before the device is done, so a phase must end by fetching or blocking on its
    result; otherwise the next phase pays for it.

        with timer.measure("rollout"):
            trajectory = jax.block_until_ready(rollout(...))
        writer.write_timings(step, timer.report())

    Args:
        clock: seconds, for tests.
        on_phase: called with the name of each phase as it begins.
    """

    def __init__(
        self, clock: Clock = time.monotonic, on_phase: Callable[[str], None] | None = None
    ) -> None:
        self._clock = clock
        self._on_phase = on_phase
        self._seconds: dict[str, float] = {}
        self._since = clock()

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to a phase, also where the block raises."""
        start = self._clock()
        if self._on_phase is not None:
            self._on_phase(phase)
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + self._clock() - start

    def report(self) -> dict[str, float]:
        """Seconds and shares since the last report, and starts over.

        Returns:
            "seconds/total" (wall time, phases or not), and for each phase "seconds/PHASE" and
            "share/PHASE", its part of the total in [0, 1]; "share/other" is what no phase claimed.
        """
        now = self._clock()
        total = now - self._since
        report = {"seconds/total": total}
        for phase, seconds in self._seconds.items():
            report[f"seconds/{phase}"] = seconds
            report[f"share/{phase}"] = seconds / total if total > 0 else 0.0
        other = max(0.0, total - sum(self._seconds.values()))
        report["share/other"] = other / total if total > 0 else 0.0
        self._seconds = {}
        self._since = now
        return report


def _format(shown: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{value:.4g}" for key, value in shown.items()}


def _duration(seconds: float) -> str:
    """Seconds as 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
