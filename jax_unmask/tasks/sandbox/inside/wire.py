"""Frames of JSON between processes that do not trust each other.

The receiver rebuilds data from exact built-in types, so an object that overrides `==` cannot be
sent: the receiver compares plain data, or refers to the sender's object by a number.
"""

import builtins
import collections
import datetime
import decimal
import fractions
import json
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any

MAX_FRAME = 16 * 2**20
_LENGTH = struct.Struct("!I")
_SMALL = 2**53


class Broken(Exception):
    """The other side is gone, or violates the protocol.

    Attributes:
        ever: whether that has happened in this process, also if somebody caught the exception.
    """

    ever = False

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        Broken.ever = True


def send(descriptor: int, message: Any) -> None:
    """Writes one frame.

    Raises:
        Broken: the other side is gone, or the message is over 16 MiB.
    """
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_FRAME:
        raise Broken(f"a message of {len(body)} bytes is too long")
    frame = memoryview(_LENGTH.pack(len(body)) + body)
    try:
        while frame:
            frame = frame[os.write(descriptor, frame) :]
    except OSError as error:
        raise Broken(str(error)) from error


def receive(descriptor: int) -> Any:
    """Reads one frame.

    Raises:
        Broken: the other side is gone, or what it wrote is not a frame.
    """
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size))
    if length > MAX_FRAME:
        raise Broken(f"a message of {length} bytes is too long")
    try:
        return json.loads(_read(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise Broken(f"not a message: {error}") from error


def _read(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = os.read(descriptor, min(size, 2**16))
        except OSError as error:
            raise Broken(str(error)) from error
        if not part:
            raise Broken("the other side is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """JSON form of a value; `refer` gives the form of what is not built-in data."""
    if value is None or isinstance(value, bool):
        return value
    # Subclasses of built-in types are sent as the data that they consist of.
    if isinstance(value, str):
        return str(value) if type(value) is str else ["str", "".join(str.__iter__(value))]
    if isinstance(value, int):
        return int(value) if -_SMALL < value < _SMALL else ["int", hex(value)]
    if isinstance(value, float):
        return float(value)
    for kind, name in _CONTAINERS:
        if isinstance(value, kind):
            return [name, [encode(each, refer) for each in value]]
    if isinstance(value, dict):
        pairs = [[encode(key, refer), encode(each, refer)] for key, each in value.items()]
        return ["dict", pairs]
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, value.hex()]
    for scalar, to_text, _ in _SCALARS:
        if type(value) is scalar:
            return [scalar.__name__, to_text(value)]
    if value is Ellipsis or value is NotImplemented:
        return ["constant", repr(value)]
    if isinstance(value, type):
        name = str(value.__name__)
        if getattr(builtins, name, None) is value:
            return ["type", name]
    if type(value) is range:
        return ["range", [encode(each, refer) for each in (value.start, value.stop, value.step)]]
    return ["object", refer(value)]


def _microseconds(value: datetime.timedelta) -> str:
    return str(value // datetime.timedelta(microseconds=1))


_CONTAINERS: tuple[tuple[Any, str], ...] = (
    (list, "list"),
    (tuple, "tuple"),
    (set, "set"),
    (frozenset, "frozenset"),
    (collections.deque, "deque"),
)
_SCALARS: tuple[tuple[type, Callable[[Any], str], Callable[[str], Any]], ...] = (
    (complex, repr, complex),
    (decimal.Decimal, str, decimal.Decimal),
    (fractions.Fraction, str, fractions.Fraction),
    (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    (datetime.timedelta, _microseconds, lambda text: datetime.timedelta(microseconds=int(text))),
    (pathlib.PosixPath, str, pathlib.PosixPath),
)
_MAKE: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "type": {n: kind for n, kind in vars(builtins).items() if isinstance(kind, type)}.__getitem__,
    "constant": {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}.__getitem__,
    **{kind.__name__: from_text for kind, _, from_text in _SCALARS},
}


def decode(form: Any, resolve: Callable[[Any], Any]) -> Any:
    """The value of a JSON form, made of exact built-in types; `resolve` finds objects.

    Raises:
        Broken: it is not the form of a value.
    """
    if not isinstance(form, list):
        if isinstance(form, dict):
            raise Broken(f"not a value: {str(form)[:80]}")
        return form
    try:
        name, body = form
        if name == "object":
            return resolve(body)
        if name == "dict":
            return {decode(key, resolve): decode(each, resolve) for key, each in body}
        if name == "range":
            return range(*(decode(each, resolve) for each in body))
        for kind, kind_name in _CONTAINERS:
            if name == kind_name:
                return kind(decode(each, resolve) for each in body)
        return _MAKE[name](body)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise Broken(f"not a value: {str(form)[:80]} ({error})") from error
