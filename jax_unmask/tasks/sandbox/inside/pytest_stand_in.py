"""The part of pytest that tests of single functions use: raises, approx, parametrize, skip, fail.

A test that asks for anything else (a fixture, say) fails.
"""

import functools
import math
import re
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_CASES = "_parametrized"


class Skipped(Exception):
    """A test that skips itself; it does not count as passed."""


class Raises:
    """`with raises(kind, match=pattern) as info:`; `info.value` is the exception."""

    def __init__(self, kind: Any, match: str | None = None) -> None:
        self._kind, self._match = kind, match
        self.value: BaseException | None = None

    def __enter__(self) -> "Raises":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        del kind, trace
        if error is None:
            raise AssertionError(f"did not raise {self._kind}")
        if not isinstance(error, self._kind):
            return False
        self.value = error
        if self._match is not None and not re.search(self._match, str(error)):
            raise AssertionError(f"{self._match!r} does not match {str(error)!r}")
        return True


def raises(kind: Any, *args: Any, match: str | None = None, **kwargs: Any) -> Any:
    """The context manager, or with a function to call, its call within one."""
    if not args:
        return Raises(kind, match)
    with Raises(kind) as info:
        args[0](*args[1:], **kwargs)
    return info


class Approx:
    """Equal to numbers, or containers of numbers, that are close."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:
        self._expected, self._rel, self._abs = expected, rel, abs

    def __eq__(self, other: object) -> bool:
        return self._close(self._expected, other)

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"

    def _close(self, expected: Any, got: Any) -> bool:
        if isinstance(expected, list | tuple):
            same = isinstance(got, list | tuple) and len(got) == len(expected)
            return same and all(map(self._close, expected, got))
        if isinstance(expected, dict):
            same = isinstance(got, dict) and got.keys() == expected.keys()
            return same and all(self._close(expected[key], got[key]) for key in expected)
        if not isinstance(got, int | float | complex):
            return bool(expected == got)
        if expected == got:
            return True
        relative = 1e-6 if self._rel is None and self._abs is None else self._rel or 0.0
        absolute = 1e-12 if self._abs is None else self._abs
        distance = abs(expected - got)
        return bool(distance <= max(relative * abs(expected), absolute) and math.isfinite(distance))


def parametrize(names: str | Sequence[str], values: Sequence[Any], **_: Any) -> Any:
    """The decorator `mark.parametrize`; ids and the like do not matter here."""
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    rows = [(each.values if isinstance(each, _Arguments) else each) for each in values]
    keyed = [
        dict(zip(names, row if len(names) > 1 or isinstance(values[k], _Arguments) else (row,)))  # noqa: B905
        for k, row in enumerate(rows)
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        before = getattr(function, _CASES, [{}])
        setattr(function, _CASES, [{**old, **new} for old in before for new in keyed])
        return function

    return decorate


class _Arguments:
    def __init__(self, *values: Any, **_: Any) -> None:
        self.values = values


class _Mark:
    """`mark`: parametrize, and names of marks that change nothing."""

    parametrize = staticmethod(parametrize)

    def __getattr__(self, name: str) -> Any:
        if name in ("skip", "skipif", "xfail", "usefixtures"):
            raise AttributeError(f"mark.{name} is not supported")

        def mark(*args: Any, **_: Any) -> Any:
            return args[0] if len(args) == 1 and callable(args[0]) else lambda function: function

        return mark


def fail(reason: str = "", **_: Any) -> None:
    """Fails the test."""
    raise AssertionError(reason)


def skip(reason: str = "", **_: Any) -> None:
    """Gives the test up; it does not count as passed."""
    raise Skipped(reason)


def module() -> types.ModuleType:
    """The module that `import pytest` imports."""
    made = types.ModuleType("pytest")
    members = {"raises": raises, "approx": Approx, "mark": _Mark(), "param": _Arguments}
    made.__dict__.update(members, fail=fail, skip=skip)
    return made


def collect(variables: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """The tests that some variables hold: functions `test_*`, methods of classes `Test*`."""
    for name, value in list(variables.items()):
        if name.startswith("test") and isinstance(value, types.FunctionType):
            for case in getattr(value, _CASES, [{}]):
                yield functools.partial(value, **case)
        elif name.startswith("Test") and isinstance(value, type):
            yield from _methods(value)


def _methods(kind: type) -> Iterator[Callable[[], Any]]:
    for name, method in vars(kind).items():
        if name.startswith("test") and isinstance(method, types.FunctionType):
            for case in getattr(method, _CASES, [{}]):
                yield functools.partial(_run_method, kind, name, case)


def _run_method(kind: type, name: str, case: dict[str, Any]) -> None:
    instance = kind()
    for before in ("setUp", "setup_method"):
        if hasattr(instance, before):
            getattr(instance, before)()
    getattr(instance, name)(**case)
