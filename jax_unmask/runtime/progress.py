"""Progress bars, and the time that each phase of a step takes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import jax
import tqdm

Clock = Callable[[], float]


def progress_bar(
    total: int,
    *,
    initial: int = 0,
    title: str = "",
    stream: TextIO | None = None,
) -> tqdm.tqdm:
    """A progress bar with rate and time left, on process 0; without a terminal a line every 10 s.

    Args:
        total: steps of the whole run.
        initial: steps done before this process began; they don't count towards the rate.
        title: words before the bar.
        stream: where to write; standard error by default.
    """
    stream = stream or sys.stderr
    settings: dict[str, Any] = {"file": stream, "dynamic_ncols": True}
    if not stream.isatty():
        settings = {
            "file": _Lines(stream),
            "mininterval": 10.0,
            "miniters": 1,
            "bar_format": "{desc} {n_fmt}/{total_fmt} |{rate_fmt} | {elapsed}<{remaining}{postfix}",
        }
    return tqdm.tqdm(
        total=total,
        initial=initial,
        desc=title or None,
        unit="step",
        disable=jax.process_index() != 0,
        **settings,
    )


def bar(share: float, width: int = 10) -> str:
    """A bar of characters.

    >>> bar(0.25, 8)
    '##......'
    """
    filled = round(share * width)
    return "#" * filled + "." * (width - filled)


def leave_out_time(bar: tqdm.tqdm) -> None:
    """Lets the rate of a bar begin here: what came before (compiling) does not count."""
    bar.initial, bar.start_t = bar.n, bar._time()
    bar.last_print_t = bar.start_t


class _Lines:
    """A stream on which every refresh of a bar is a new line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.flush = stream.flush

    def write(self, text: str) -> None:
        if text := text.strip():
            self._stream.write(text + "\n")


class Timer:
    """Wall time by phase of a step: rollout, reward, update, checkpoint.

    JAX returns before the device is done, so a phase must end by fetching or blocking on its
    result; otherwise the next phase pays for it.

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
            "share/PHASE", its part of the total in [0, 1]; "share/other" is the rest.
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
