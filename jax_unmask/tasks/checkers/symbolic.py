r"""Whether two LaTeX answers have the same value, by `math-verify`.

Symbolic algebra on a model's answer may take any time, so it runs in worker processes, each
comparison with a time limit of its own and a hard one above it. What strings settle, never gets
there: groups of rollouts repeat their answers.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence

from jax_unmask.tasks.checkers import latex
from jax_unmask.tasks.workers import Answer, Lost, WorkerPool

MAX_LENGTH = 256
"""Longer answers are wrong: right ones have at most 150 characters in all of MATH."""
_DEADLINE_SECONDS = 30.0
_WORKER = "jax_unmask.tasks.checkers.symbolic_worker"


def start(pairs: Sequence[tuple[str, str | None]]) -> Callable[[], list[bool]]:
    """Begins to compare right answers with given ones, side by side.

    Args:
        pairs: a right answer and the given one (None where there is none), without their boxes.

    Returns:
        A function that waits for the results.

    Raises:
        ImportError: math-verify is not installed.
    """
    settled = {pair: _settle(*pair) for pair in dict.fromkeys(pairs)}
    asked = [pair for pair, same in settled.items() if same is None]
    running = {pair: pool().submit({"right": pair[0], "given": pair[1]}) for pair in asked}

    def results() -> list[bool]:
        known = settled | {pair: _same(future.result()) for pair, future in running.items()}
        return [bool(known[pair]) for pair in pairs]

    return results


def _settle(right: str, given: str | None) -> bool | None:
    """Verdict that needs no algebra; None where algebra is needed."""
    if given is None or not given.strip() or len(given) > MAX_LENGTH:
        return False
    return latex.is_equiv(right, given) or None


def _same(answer: Answer | Lost) -> bool:
    return isinstance(answer, dict) and answer.get("same") is True


@functools.cache
def pool() -> WorkerPool:
    """The workers that compare: one pool per process."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(
            "equivalence='symbolic' needs `pip install 'jax_unmask[math]'` (math-verify); "
            "equivalence='string' needs nothing"
        )
    return WorkerPool(
        [sys.executable, "-m", _WORKER],
        workers=min(4, len(os.sched_getaffinity(0))),
        deadline_seconds=_DEADLINE_SECONDS,
    )
