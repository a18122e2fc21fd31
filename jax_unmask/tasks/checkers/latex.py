r"""Whether two LaTeX answers are the same after the MATH data set's string normalisation.

The rules are those of Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH
Dataset" (arXiv 2103.03874), as the published experiments apply them. They compare strings, not
values: `\frac{2}{4}` differs from `\frac{1}{2}`.
"""

import re
from collections.abc import Callable

Rule = Callable[[str], str]
# A text that goes on with another value instead of naming a unit.
_HEDGE = re.compile(r"\\text\{ [^{}]*(?:\b(?:or|and)\b|\d)|\\text\{ [^{}]*\}[^^\d]*\d")


def _replacing(*pairs: tuple[str, str]) -> Rule:
    def rule(text: str) -> str:
        for old, new in pairs:
            text = text.replace(old, new)
        return text

    return rule


def _drop_units(text: str) -> str:
    r"""Removes a unit at the right end, which the data set writes as `\text{ cm}`."""
    value, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise ValueError("more than one unit")
    return value


def _drop_name(text: str) -> str:
    """Removes a short left side, such as `x=`."""
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text


def _has_named_side(text: str) -> bool:
    return any(character.isalpha() for character in text.partition("=")[0])


def _brace_roots(text: str) -> str:
    r"""Writes `\sqrt3` as `\sqrt{3}`."""
    head, *rest = text.split("\\sqrt")
    for part in rest:
        if not part:
            raise ValueError("a root without an argument")
        head += "\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}")
    return head


def _brace_fractions(text: str) -> str:
    r"""Writes `\frac12` as `\frac{1}{2}` and `\frac1{2}` as `\frac{1}{2}`."""
    head, *rest = text.split("\\frac")
    for part in rest:
        if not part:
            raise ValueError("a fraction without arguments")
        if part[0] == "{":
            head += "\\frac" + part
        elif len(part) == 1:
            return text
        elif part[1] == "{":
            head += f"\\frac{{{part[0]}}}{part[1:]}"
        else:
            head += f"\\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return head


def _slash_to_fraction(text: str) -> str:
    r"""Writes a quotient of two integers, `3/4`, as `\frac{3}{4}`."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    top, bottom = int(parts[0]), int(parts[1])  # Raises ValueError for anything but integers.
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


# In this order: each rule relies on those before it.
_RULES: tuple[Rule, ...] = (
    _replacing(("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")),
    _replacing(("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
    _drop_units,
    _replacing(("\\%", ""), (" .", " 0."), ("{.", "{0.")),
    lambda text: "0" + text if text.startswith(".") else text,
    _drop_name,
    _brace_roots,
    _replacing((" ", "")),
    _brace_fractions,
    lambda text: "\\frac{1}{2}" if text == "0.5" else text,
    _slash_to_fraction,
)


def normalise(text: str, *, reference_compat: bool = False) -> str:
    """Normal form of a LaTeX answer.

    Args:
        text: an answer without its box.
        reference_compat: give up where a rule does not apply (as the reference does, which then
            compares the raw strings) instead of leaving that rule out.

    Raises:
        ValueError: with `reference_compat`, if a rule does not apply.
    """
    for rule in _RULES:
        if rule is _drop_name and not reference_compat and not _has_named_side(text):
            continue  # `5=7` does not state that something is 7.
        if rule is _drop_units and not reference_compat and _HEDGE.search(text):
            continue  # `5 \text{ or } 6` is not 5.
        try:
            text = rule(text)
        except ValueError:
            if reference_compat:
                raise
    return text


def is_equiv(first: str | None, second: str | None, *, reference_compat: bool = False) -> bool:
    r"""Whether two answers are the same.

    Args:
        first: an answer without its box; None where there is none.
        second: the other answer.
        reference_compat: behave as the published code does, where two missing (or two blank)
            answers count as the same. By default a missing answer equals nothing.

    >>> is_equiv(r"\frac{1}{2}", "0.5"), is_equiv(r"\frac{1}{2}", r"\frac{2}{4}")
    (True, False)
    """
    if first is None or second is None:
        return reference_compat and first is second
    if not reference_compat:
        if not first.strip() or not second.strip():
            return False
        return normalise(first) == normalise(second)
    try:
        return normalise(first, reference_compat=True) == normalise(second, reference_compat=True)
    except ValueError:
        return first == second
