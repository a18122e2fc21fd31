"""A worker process that compares answers with `math-verify` (run with `python -m`)."""

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
_THOUSANDS = re.compile(r"(?<=\d),(?:\\[!,])?(?=\d{3}(?!\d))", re.ASCII)
_WORD = re.compile(r"\\(?:text|mbox|textrm)\s*\{[^{}]*\b(?:or|and)\b[^{}]*\}|\b(?:or|and)\b")
# Numbers of which 50 digits are computed are the same if so much of them agrees.
_DIGITS, _TOLERANCE = 50, 1e-25
_TUPLE = re.compile(r"^(?:\\left)?([(\[]).*,.*(?:\\right)?([)\]])$", re.DOTALL)


class _TooLong(BaseException):
    """The time is up; no `except Exception` of the algebra keeps it from ending."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def items(text: str) -> int:
    r"""Number of values that an answer lists: `1, 2 \text{ or } 3` and `1, \pm 2` have 3."""
    text = _WORD.sub(",", _THOUSANDS.sub("", text)).strip()
    if text.startswith("\\{") and text.endswith("\\}"):
        text = text[2:-2]
    depth, parts = 0, [""]
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return sum(2 if "\\pm" in part else 1 for part in parts if part.strip())


def compare(right: Any, given: Any) -> bool | None:
    """Whether two expressions are the same number, or the same once decimals are exact.

    None where this does not tell: math-verify rounds, so that small numbers are all the same.
    """
    import sympy  # type: ignore[import-untyped]

    if not (isinstance(right, sympy.Expr) and isinstance(given, sympy.Expr)):
        return None
    pair = []
    for each in (right, given):
        exact = {d: sympy.Rational(str(d)) for d in each.atoms(sympy.Float)}
        # What is assumed of a variable depends on what stands beside it.
        plain = {v: sympy.Symbol(v.name) for v in each.atoms(sympy.Symbol)}
        pair.append(each.xreplace(exact | plain))
    if not all(each.is_number for each in pair):
        return True if sympy.expand(pair[0] - pair[1]) == 0 else None
    first, second = (each.evalf(_DIGITS) for each in pair)
    if not (first.is_finite and second.is_finite):
        return False
    if abs(first - second) > _TOLERANCE * max(abs(first), abs(second)):
        return False
    difference = (pair[0] - pair[1]).doit()  # Rational numbers are compared as a whole.
    return not (difference.is_Rational and difference)


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
        if items(right) != items(given):
            return False  # `5 or 6` is not 5, and `1, 1, 2` not `1, 2`.
        first, second = read(right), read(given)
        if first and second:
            found = compare(first[0], second[0])
            if found is not None:
                return found
        precision = {"float_rounding": _ROUNDING, "numeric_precision": _PRECISION}
        return bool(verify(first, second, **precision, timeout_seconds=None))

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
