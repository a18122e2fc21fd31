"""A worker process that compares answers with `math-verify` (run with `python -m`)."""

from __future__ import annotations

import logging
import re
import resource
import signal
from types import FrameType
from typing import Any

from jax_unmask.tasks.sandbox.inside import wire

# Of processor time, so that what counts as right does not depend on what else the machine does.
_SECONDS = 2.0
_MEMORY_BYTES = 2 * 2**30
# Decimals count as the number they state, not as one that they could be rounded from.
_ROUNDING = 12
_PRECISION = 20
_RELATION = re.compile(r"[<>≤≥≠≈]|\\(?:le|ge|ne|leq|geq|neq|lt|gt|approx|sim)(?![a-zA-Z])")
_LETTER = re.compile(r"[A-Za-z]")
# `x \in [-2, 7]` names the variable of the set that is the answer.
_MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![a-zA-Z])\s*")
_TUPLE = re.compile(r"^(?:\\left)?([(\[]).*,.*(?:\\right)?([)\]])$", re.DOTALL)


class _TooLong(BaseException):
    """The time is up; no `except Exception` of the algebra keeps it from ending."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def main() -> None:
    """Answers frames {"right", "given"} on descriptor 0 with {"same"} on descriptor 1."""
    from math_verify import LatexExtractionConfig, parse, verify

    # It reports every answer that it cannot read; most of those are simply wrong.
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGVTALRM, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))

    def read(text: str) -> Any:
        config = [LatexExtractionConfig(boxed_match_priority=0)]
        # Its own time limits count elapsed time.
        return parse(f"\\boxed{{{text}}}", config, parsing_timeout=None)

    def same(right: str, given: str) -> bool:
        right, given = _MEMBER.sub("", right), _MEMBER.sub("", given)
        if bool(_TUPLE.match(right.strip())) != bool(_TUPLE.match(given.strip())):
            return False  # Points and intervals are not lists of numbers.
        if _RELATION.search(given) and not _RELATION.search(right):
            return False  # `> 5` is not 5.
        if "=" in given and "=" not in right and not _LETTER.search(given.partition("=")[0]):
            return False  # `5 = 7` does not state that something is 7.
        return bool(
            verify(
                read(right),
                read(given),
                float_rounding=_ROUNDING,
                numeric_precision=_PRECISION,
                timeout_seconds=None,
            )
        )

    wire.send(1, {"ready": True})
    while True:
        try:
            pair = wire.receive(0)
        except wire.Broken:
            return
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
            answer = same(pair["right"], pair["given"])
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except (ArithmeticError, RecursionError, MemoryError, TypeError, ValueError, _TooLong):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            answer = False  # An answer that makes the algebra fail is wrong.
        wire.send(1, {"same": answer})


if __name__ == "__main__":
    main()
