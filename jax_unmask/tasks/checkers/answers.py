"""Finds the final answer in a response: the last marker that is filled, a box or an answer tag.

All functions are total (no text makes them raise) and linear in the length of the text.
"""

import math
import re
import unicodedata
from collections.abc import Iterator

from jax_unmask.tasks.checkers import expressions

# An opening box, a box without braces, an escaped character (so that `\{` opens nothing), a brace.
_BOX_TOKEN = re.compile(
    r"(?P<open>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)\s+(?P<bare>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL
)
# Text that only holds the place of an answer, as in the form that a prompt asks for.
_PLACEHOLDER = re.compile(r"(?:[\s.…]|\\(?:boxed|[lc]?dots|text)|[{}$])*")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
# Spacing, currency and signs of grouping within numbers.
_NOISE = re.compile(r"\\(?:[!,;:]|left|right|displaystyle|[()%$&])|[$€£%]|\{,\}|\\quad")
# A special token or a tag, which ends an answer; a box or a text that was never closed.
_END = re.compile(r">?<\s*[|/]")
_UNCLOSED = re.compile(r"[\\.]*f?boxed\s*\{|\\(?:text|mathrm|mbox)\s*\{(?=[^{}]*$)")
_LONGEST = 1000  # Characters of a text that is read as a number.
_SIGNS = dict.fromkeys(map(ord, "−–—‐‑﹣－"), "-") | {ord("⁄"): "/"}
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_FRACTION = re.compile(
    r"\\[dt]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))", re.ASCII
)
_OPERATORS = re.compile(r"\\times|\\cdot|×|·|\\div|÷")
_POWER = re.compile(r"\^\s*(?:\{\s*(-?\d{1,4})\s*\}|(-?\d{1,4}))", re.ASCII)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*(?:\^\s*(?:\{\d\}|\d)|[²³])", re.ASCII)
_NUMBER = re.compile(
    r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)(?!\s*/)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\d))?|\.\d+",
    re.ASCII,
)
_HOUR = re.compile(r"(?<!\d)(\d{1,2}):00(?!\d)", re.ASCII)
_MIXED = re.compile(r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)", re.ASCII)
# A minus counts as a sign only where it cannot be a hyphen.
_EXPRESSION = re.compile(
    r"(?:(?<![\w)])[-+]\s*)?\(*\s*(?:-\s*)?N(?:\s*\)*\s*(?:\*\*|[-+*/])\s*\(*\s*(?:-\s*)?N)*\s*\)*"
)
# What may stand around a number: words, as units are, and punctuation; no variables.
_AROUND = re.compile(r"(?:(?<![^\W_])(?![xyznk]\b)[^\W\d_][^\W_]*|[\s.,;:!?'\"()/°~-])*")


def boxes(text: str) -> list[str]:
    r"""Contents of every closed `\boxed{...}` or `\fbox{...}`, in the order in which they open.

    Braces are counted, so contents may be nested and may run over line ends. A box without braces
    (`\boxed 7`) holds the characters up to the next space or dollar sign. Boxes that are never
    closed are left out.

    >>> boxes(r"\boxed{\frac{1}{2}}, no: $\boxed 7$")
    ['\\frac{1}{2}', '7']
    """
    return [content for _, content in _boxes(text)]


def _boxes(text: str) -> list[tuple[int, str]]:
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
    return sorted(found)


def _tags(text: str) -> Iterator[tuple[int, str]]:
    """Contents of answer tags, up to their end tag, the next tag, or the end of the text."""
    start = text.find("<answer>")
    while start >= 0:
        start += len("<answer>")
        following = text.find("<answer>", start)
        content = text[start : following if following >= 0 else len(text)]
        yield start, content.partition("</answer>")[0]
        start = following


def _last_filled(marked: list[tuple[int, str]]) -> str | None:
    filled = [each for each in marked if not _PLACEHOLDER.fullmatch(each[1])]
    return max(filled)[1].strip() if filled else None


def number(text: str) -> float | None:
    r"""The finite number that a short answer states; None if it states none, or several.

    Understands thousands separators (`1,000`, `1{,}000`, `1\,000`, `10 000`), negative numbers,
    currency signs, units, equations (what follows the last `=`), fractions, mixed numbers, powers
    and sums.

    >>> number(r"x = 1{,}000 \text{ cm}"), number("2 1/2"), number("5 * 10^3"), number("5 or 6")
    (1000.0, 2.5, 5000.0, None)
    """
    if len(text) > _LONGEST:
        return None
    text = _plain(text).rpartition("=")[2]
    values: list[str] = []

    def keep(found: re.Match[str]) -> str:
        values.append(re.sub("[, ]", "", found[0]))
        return "N"

    masked = _NUMBER.sub(keep, text.replace("N", "n"))
    expression = _EXPRESSION.search(masked)
    if expression is None or masked.count("N") != expression[0].count("N"):
        return None
    around = masked[: expression.start()] + " " + masked[expression.end() :]
    if not _AROUND.fullmatch(_UNIT_POWER.sub("", around)):
        return None
    digits = iter(values)
    # No leading zeros, which Python's numbers do not have.
    terms = re.sub("N", lambda _: next(digits).lstrip("0") or "0", expression[0])
    return _finite(expressions.evaluate_as_python(re.sub(r"(?<![\d.])\.", "0.", terms)))


def _finite(value: float | int | None) -> float | None:
    try:
        found = math.nan if value is None else float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _plain(text: str) -> str:
    """A short answer with plain spaces, minus signs, fractions and powers."""
    text = _VULGAR.sub(lambda f: f" {unicodedata.normalize('NFKC', f[0])}", text)
    text = _UNCLOSED.sub("", _END.split(_typed(text), maxsplit=1)[0])
    text = _TEXT.sub(r"\1", text).replace("{,}", ",").replace("~", " ")
    text = _OPERATORS.sub(lambda sign: "/" if sign[0] in ("\\div", "÷") else "*", text)
    text = _NOISE.sub("", text)
    text = _FRACTION.sub(lambda f: f" ({f[1] or f[2]})/({f[3] or f[4]})", text)
    # Mixed numbers: whole and fraction are a sum, which a sign before it takes as a whole.
    text = re.sub(r"(?<![\d.)])(\d+)\s+\((\d+)\)/\((\d+)\)", r"((\1)+(\2)/(\3))", text)
    text = _MIXED.sub(r"((\1)+(\2)/(\3))", text)
    text = _POWER.sub(lambda power: f"**{power[1] or power[2]}", _UNIT_POWER.sub("", text))
    return _HOUR.sub(r"\1", re.sub(r"[{}]", "", text)).strip()


def _typed(text: str) -> str:
    """A text with the spaces and minus signs of keyboards."""
    text = "".join(" " if unicodedata.category(char) == "Zs" else char for char in text)
    return text.translate(_SIGNS)


def final_number(text: str) -> float | None:
    """The number that a GSM8K response gives as its answer, or None.

    It stands in the last filled marker: a box, an `<answer>` tag or after `####`, as in the data
    set's own solutions. A number that is merely mentioned is no answer, and neither are two.

    >>> final_number("So <answer>12 + 6 = 18</answer>"), final_number("The total is 18.")
    (18.0, None)
    """
    lines = [(m.start(1), m[1]) for m in re.finditer(r"####[ \t]*([^\n]*)", text)]
    answer = _last_filled([*_boxes(text), *_tags(text), *lines])
    return None if answer is None else number(answer)


def final_expression(text: str) -> str | None:
    r"""The LaTeX expression that a response gives as its answer, or None.

    It stands in the last filled box or `<answer>` tag.

    >>> final_expression(r"\boxed{x} or \boxed{x+1}"), final_expression("<answer> x+1 </answer>")
    ('x+1', 'x+1')
    """
    answer = _last_filled([*_boxes(text), *_tags(text)])
    return None if answer is None else _typed(answer)
