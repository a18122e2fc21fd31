"""Finds the final answer in a response: the last box, else the last answer tag.

All functions are total (no text makes them raise) and linear in the length of the text.
"""

from __future__ import annotations

import math
import re
from typing import Literal

# An opening box, a box without braces, an escaped character (so that `\{` opens nothing), a brace.
_BOX_TOKEN = re.compile(
    r"(?P<open>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)\s+(?P<bare>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL
)
# Spacing, currency and grouping signs within numbers.
_NOISE = re.compile(r"\\[!,;: ]|\\?\$|~")
# A minus counts as a sign only where it cannot be a subtraction: `10-3` holds 10 and 3.
_NUMBER = re.compile(
    r"(?:(?<![\w)}])-)?"
    r"(?:(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+-]?\d{1,3}(?!\d))?",
    re.ASCII,
)
_FRACTION = re.compile(
    r"(?P<sign>-?)\s*(?P<whole>\d+(?=[\s\\]))?\s*"
    r"(?:\\[dt]?frac\s*\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
    r"|(?P<above>\d+)\s*/\s*(?P<below>\d+))",
    re.ASCII,
)


def boxes(text: str) -> list[str]:
    r"""Contents of every closed `\boxed{...}` or `\fbox{...}`, in the order in which they open.

    Braces are counted, so contents may be nested and may run over line ends. A box without braces
    (`\boxed 7`) holds the characters up to the next space or dollar sign. Boxes that are never
    closed are left out.

    >>> boxes(r"\boxed{\frac{1}{2}}, no: $\boxed 7$")
    ['\\frac{1}{2}', '7']
    """
    found: list[tuple[int, str]] = []
    opened: list[int | None] = []  # Where each open brace's content starts; None outside a box.
    for token in _BOX_TOKEN.finditer(text):
        if token["open"]:
            opened.append(token.end())
        elif token["bare"]:
            found.append((token.start(), token["bare"]))
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                found.append((start, text[start : token.start()]))
    return [content for _, content in sorted(found)]


def tagged(text: str) -> str | None:
    """Content of the last `<answer>` tag, up to its end tag or the end of the text, or None."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0].strip() if tag else None


def number(text: str, *, which: Literal["first", "last"]) -> float | None:
    r"""The finite number that a short answer states.

    Understands thousands separators (`1,000`, `1{,}000`, `1\,000`, `10 000`), negative numbers,
    currency signs, units, equations (what follows the last `=`), fractions and mixed numbers.

    Args:
        text: the answer, such as the content of a box.
        which: the number to take if the answer has several.

    >>> number(r"x = 1{,}000 \text{ cm}", which="first"), number("2 1/2", which="first")
    (1000.0, 2.5)
    """
    text = _NOISE.sub("", text.replace("−", "-").replace("{,}", ",")).rpartition("=")[2].strip()
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        return _fraction_value(fraction)
    if "frac" in text:
        return None  # Neither the numerator nor the denominator alone is the answer.
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    value = float(re.sub("[, ]", "", numbers[0 if which == "first" else -1]))
    return value if math.isfinite(value) else None


def _fraction_value(fraction: re.Match[str]) -> float | None:
    top = float(fraction["top"] or fraction["above"])
    bottom = float(fraction["bottom"] or fraction["below"])
    value = float(fraction["whole"] or 0) + top / bottom if bottom else math.inf
    if fraction["sign"]:
        value = -value
    return value if math.isfinite(value) else None


def final_number(text: str) -> float | None:
    """The number that a GSM8K response gives as its answer, or None.

    The last box that holds a number; without one the last number of the last `<answer>` tag;
    without one the number that follows the last `####`, as in the data set's own solutions. A
    number that is merely mentioned is no answer.

    >>> final_number("So <answer>12 + 6 = 18</answer>"), final_number("The total is 18.")
    (18.0, None)
    """
    for box in reversed(boxes(text)):
        value = number(box, which="first")
        if value is not None:
            return value
    answer = tagged(text)
    if answer:
        value = number(answer, which="last")
        if value is not None:
            return value
    _, mark, rest = text.rpartition("####")
    return number(rest.lstrip().partition("\n")[0], which="first") if mark else None


def final_expression(text: str) -> str | None:
    r"""The LaTeX expression that a MATH response gives as its answer, or None.

    The last box that is not blank, without one the last `<answer>` tag.

    >>> final_expression(r"\boxed{x} or \boxed{x+1}"), final_expression("<answer> x+1 </answer>")
    ('x+1', 'x+1')
    """
    for box in reversed(boxes(text)):
        if box.strip():
            return box.strip()
    return tagged(text) or None
