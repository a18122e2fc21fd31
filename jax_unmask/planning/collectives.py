"""The collectives of a compiled program and their bytes.

Read from the text of the optimised program. A collective inside a loop is counted once: its bytes
are per iteration, and `Collective.loops` is the number of loops around it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16}
_OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(?P<type>[a-z]+[0-9]*[a-z0-9]*)\[(?P<shape>[0-9,]*)\]")
_HEADER = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(r"(body|condition|to_apply|calls|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_GROUPS = re.compile(r"replica_groups=(\{\{.*?\}\}|\[[0-9,]+\]<=|mesh\[.*?\] \{.*?\})")
_AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """One collective of a program.

    Attributes:
        open_loops: those of the loops whose number of rounds is not known before, such as that
            over the steps of a rollout.
        times: how often the others, such as that over the layers, let it run: in the whole program,
            or in one round of the innermost open loop.
    """

    loops: int  # That it is inside of; 0 for once per call of the program.
    kind: str  # One of `KINDS`.
    arrays: tuple[str, ...]  # What it gives each device, such as "f32[8,64]".
    bytes: int  # Size of that.
    group: int  # Devices that take part in one exchange.
    # Where in the source it comes from, as far as the compiler knows.
    name: str = dataclasses.field(default="", compare=False)
    open_loops: int = dataclasses.field(default=0, compare=False)
    times: int = dataclasses.field(default=1, compare=False)

    def __str__(self) -> str:
        depth = f" in {self.loops} loops" if self.loops else ""
        return f"{self.kind} {' '.join(self.arrays)} among {self.group}{depth}"


def collectives(text: str) -> list[Collective]:
    """The collectives of an optimised program.

    Args:
        text: `jax.stages.Compiled.as_text()`.

    Returns:
        All that more than one device takes part in, sorted; those of a computation that is called
        from several places once for each.
    """
    computations, entry = _computations(text)
    found: list[Collective] = []

    def walk(name: str, loops: int, open_loops: int, times: int) -> None:
        for line in computations.get(name, ()):
            for each in _read(line, loops):
                found.append(dataclasses.replace(each, open_loops=open_loops, times=times))
            rounds = _ROUNDS.search(line)
            for role, called in _CALLED.findall(line):
                if role not in ("body", "condition"):
                    walk(called, loops, open_loops, times)
                elif rounds:
                    walk(called, loops + 1, open_loops, times * int(rounds[1]))
                else:
                    walk(called, loops + 1, open_loops + 1, 1)
            for branches in _BRANCHES.findall(line):
                for called in branches.split(","):
                    walk(called.strip().lstrip("%"), loops, open_loops, times)

    walk(entry, 0, 0, 1)
    return sorted(found)


def bytes_per_round(found: Iterable[Collective]) -> tuple[int, int]:
    """Bytes that a device receives once per call, and in one round of each open loop."""
    once = looping = 0
    for each in found:
        if each.open_loops:
            looping += each.bytes * each.times
        else:
            once += each.bytes * each.times
    return once, looping


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the one that is the program."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = computations.setdefault(header["name"], [])
            if line.startswith("ENTRY"):
                entry = header["name"]
        elif lines is not None and line.startswith("  "):
            lines.append(line)
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no entry computation")
    return computations, entry


def _read(line: str, loops: int) -> list[Collective]:
    """The collective of a line, if it is one among several devices."""
    match = _OPERATION.search(line)
    if match is None:
        return []
    arrays = tuple(f"{a['type']}[{a['shape']}]" for a in _ARRAY.finditer(match["result"]))
    if match["kind"] == "all-gather" and "-start(" in line:
        arrays = arrays[len(arrays) // 2 :]  # Its operands come before its results.
    groups = _GROUPS.search(line)
    size = _group_size(groups[1]) if groups else 2
    if size < 2:
        return []
    name = _NAME.search(line)
    kind, total = match["kind"], sum(map(_size, arrays))
    return [Collective(loops, kind, arrays, total, size, name[1] if name else "")]


def _group_size(groups: str) -> int:
    """Devices per group, from "{{0,1},{2,3}}", "[2,2]<=[4]" or "mesh['a'=2,'b'=2] {'a'}"."""
    if groups.startswith("mesh"):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups))
        used = _AXIS.findall(groups.rpartition("{")[2])
        return math.prod(int(part or sizes[axis]) for axis, part in used)
    if groups.startswith("{{"):
        return groups[2:].split("}")[0].count(",") + 1
    return int(groups[1:].split("]")[0].split(",")[-1])


def _size(array: str) -> int:
    """Bytes of "f32[8,64]"."""
    kind, _, shape = array.rstrip("]").partition("[")
    digits = re.search(r"[0-9]+", kind)
    bits = _BITS.get(kind) or (int(digits[0]) if digits else 0)
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8
