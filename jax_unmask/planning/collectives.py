"""The collectives of a compiled program, and the bytes that they move."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "s4": 4, "u4": 4}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([\w-]+)\((.*)$")
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count[^}]*?"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: which, of `KINDS`.
        bytes: of its larger side on each device: result, or what is reduced and scattered.
        times: how often it runs, in loops whose number of rounds is known, such as that over the
            layers: in the whole program, or in one round of the innermost loop whose is not.
        dtype: of its elements, as XLA writes it ("bf16", "f32").
        depth: loops around it whose number of rounds is not known before, such as that over the
            steps of a rollout.
    """

    kind: str
    bytes: int
    times: int
    depth: int
    dtype: str


def collectives(text: str) -> list[Collective]:
    """Reads the collectives from the text of a compiled program (`compiled.as_text()`)."""
    bodies: dict[str, list[tuple[str, str, str]]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = bodies.setdefault(start[1], [])
            entry = start[1] if line.startswith("ENTRY") else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append((found[1], found[2], found[3]))
    return list(_walk(bodies, entry, times=1, depth=0))


def _walk(
    bodies: dict[str, list[tuple[str, str, str]]], name: str, times: int, depth: int
) -> Iterator[Collective]:
    for result, operation, rest in bodies.get(name, ()):
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            size = max(_bytes(result), _bytes(rest.split("), ")[0]))
            dtype = _ARRAY.search(result)
            yield Collective(kind, size, times, depth, dtype[1] if dtype else "")
            continue
        inner, deeper = times, depth
        if operation == "while":
            trips = _TRIPS.search(rest)
            inner, deeper = (times * int(trips[1]), depth) if trips else (1, depth + 1)
        called = _CALLS.findall(rest)
        for group in _BRANCHES.findall(rest):
            called += [branch.strip().lstrip("%") for branch in group.split(",")]
        for callee in called:
            yield from _walk(bodies, callee, inner, deeper)


def _bytes(shape: str) -> int:
    """Size of the largest array that a text names, or of all elements of a tuple."""
    sizes = [
        math.prod(map(int, dimensions.split(","))) * _width(kind) if dimensions else _width(kind)
        for kind, dimensions in _ARRAY.findall(shape)
    ]
    return math.ceil(sum(sizes))


def _width(kind: str) -> float:
    """Bytes of an element."""
    bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind.split("e")[0]) or 8)
    return bits / 8


def total(found: Iterable[Collective], *, looping: bool) -> int:
    """Bytes of the collectives in loops of unknown length, for one round of them; or of others."""
    return sum(each.bytes * each.times for each in found if (each.depth > 0) == looping)


def widened(found: Iterable[Collective], *, looping: bool) -> int:
    """Of them, what is gathered in float32."""
    gathered = [each for each in found if each.kind == "all-gather" and each.dtype == "f32"]
    return total(gathered, looping=looping)
