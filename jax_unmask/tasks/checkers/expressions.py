"""Values of arithmetic expressions, without `eval`: exact, bounded in time, whatever the text."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

_MAX_LENGTH = 256
_MAX_BITS = 10_000
_LATEX = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("×", "*"), ("÷", "/"), ("−", "-"))
_NOISE = re.compile(r"\\left|\\right|\\[,;! ]|\$|\\\(|\\\)")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_ALLOWED = re.compile(r"[\d+\-*/() ]+", re.ASCII)
_EXACT: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_PYTHON = {**_EXACT, ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow}


def plain(text: str) -> str:
    """An expression in LaTeX, or with typographic signs, in plain signs."""
    for old, new in _LATEX:
        text = text.replace(old, new)
    text = _FRACTION.sub(r"((\1)/(\2))", _NOISE.sub("", text))
    return text.strip()


def integers(text: str) -> list[int]:
    """The integers that an expression mentions, in ascending order."""
    return sorted(int(digits) for digits in re.findall(r"\d+", text[:_MAX_LENGTH], re.ASCII))


def evaluate(text: str) -> Fraction | None:
    """Exact value of an expression of integers, + - * / and parentheses.

    Returns:
        None for anything else, for a division by zero, and for more than 256 characters.

    >>> evaluate("(79+15)-44"), evaluate("1/3*3"), evaluate("2**9"), evaluate("7/0")
    (Fraction(50, 1), Fraction(1, 1), None, None)
    """
    if len(text) > _MAX_LENGTH or not _ALLOWED.fullmatch(text) or "**" in text or "//" in text:
        return None
    try:
        return Fraction(_value(ast.parse(text.strip(), mode="eval").body, _EXACT, Fraction))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def evaluate_as_python(text: str) -> float | int | None:
    """Value of numbers and operators, powers included, by Python's rules; None for errors.

    A result of more than 10,000 bits counts as an error, too: `9**9**9` would never end.
    """
    if len(text) > _MAX_LENGTH:
        return None
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, _PYTHON, lambda number: number)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, int | float) else None


def _value(node: ast.expr, operators: Any, number: Callable[[Any], Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return number(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, operators, number)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, operators, number)
        case ast.BinOp(op=operation, left=left, right=right) if type(operation) in operators:
            first, second = (_value(each, operators, number) for each in (left, right))
            if isinstance(operation, ast.Pow):
                _check_power(first, second)
            return operators[type(operation)](first, second)
    raise ValueError("not arithmetic")


def _check_power(base: Any, exponent: Any) -> None:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(exponent) * max(base.bit_length(), 1) > _MAX_BITS:
        raise OverflowError("too large a power")
