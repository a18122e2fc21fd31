"""Progress bars, and the time that each phase of a step takes."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import jax
import tqdm

Clock = Callable[[], float]
_WIDTH = 10


def progress_bar(total: int, *, initial: int = 0, title: str = "") -> tqdm.tqdm:
    """A progress bar with rate and time left, on standard error of process 0.

    In a notebook it is the notebook's own; elsewhere without a terminal a line every 10 s.

    Args:
        total: steps of the whole run.
        initial: steps done before this process began; they don't count towards the rate.
        title: words before the bar.
    """
    file = _Unread(sys.stderr)
    kind, settings = tqdm.tqdm, {"file": file, "dynamic_ncols": True}
    if in_notebook():
        # Its output is a stream, whose lines can be replaced.
        settings |= {"dynamic_ncols": False, "ncols": 100, "mininterval": 0.5}
        if importlib.util.find_spec("ipywidgets"):
            from tqdm import notebook

            kind, settings = notebook.tqdm, {}
    elif not sys.stderr.isatty():
        settings = {
            "file": _Lines(file),
            "mininterval": 10.0,
            "miniters": 1,
            "bar_format": "{desc} {n_fmt}/{total_fmt} |{rate_fmt} | {elapsed}<{remaining}{postfix}",
        }
    return kind(
        total=total,
        initial=initial,
        desc=title or None,
        unit="step",
        disable=jax.process_index() != 0,
        **settings,
    )


def in_notebook() -> bool:
    """Whether the process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


class Jobs:
    """Lines that say of jobs of a few seconds or more how many are done, and the time left.

    In a notebook, which shows no log, it is a bar. Jobs that took no time are left out.

    >>> jobs = Jobs(4, clock=iter([0.0, 2.0]).__next__)
    >>> jobs.done(1, "the first")
    '##........ 1/4, 2 s, 6 s left | the first'
    """

    def __init__(self, total: int, title: str = "", clock: Clock = time.monotonic) -> None:
        self._total, self._clock, self._began, self._took = total, clock, clock(), 0
        self._compiled: list[float] = []
        self._bar = progress_bar(total, title=title) if in_notebook() else None

    def done(
        self, number: int, what: str, *, compiled: float | None = None, to_compile: int = 0
    ) -> str:
        """The line of a job that has just ended; `number` of all are done now.

        `compiled` is how many seconds of it were spent on compiling, if it was the first of its
        program, and `to_compile` how many programs are left to compile.
        """
        self._took += 1
        if compiled is not None:
            self._compiled.append(compiled)
        if self._bar is not None:
            self._bar.set_postfix_str(what, refresh=False)
            self._bar.update(number - self._bar.n)
            if number == self._total:
                self._bar.close()
        seconds = self._clock() - self._began
        compiling = sum(self._compiled)
        left = (seconds - compiling) / self._took * (self._total - number)
        left += compiling / max(len(self._compiled), 1) * to_compile
        filled = round(_WIDTH * number / self._total)
        bar = "#" * filled + "." * (_WIDTH - filled)
        return f"{bar} {number}/{self._total}, {seconds:.0f} s, {left:.0f} s left | {what}"


def leave_out_step(bar: tqdm.tqdm) -> None:
    """Shows a step that does not count towards the rate, which begins here: it has compiled."""
    if bar.disable:
        return
    bar.n += 1
    bar.initial = bar.last_print_n = bar.n
    bar.start_t = bar.last_print_t = bar._time()
    bar.refresh()


class _Unread:
    """A stream without errors: a run goes on where its terminal or log has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class _Lines:
    """A stream on which every refresh of a bar is a new line."""

    def __init__(self, stream: _Unread) -> None:
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
