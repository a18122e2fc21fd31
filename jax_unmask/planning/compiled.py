"""The text of an optimised program, read: computations, loops with their rounds, parts of a step.

Read are programs that XLA compiled for CPUs, GPUs or TPUs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(r"(body|condition|to_apply|calls|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = ")
_OPERATION = re.compile(r"(?P<operation>[a-z][\w\-]*)\(")
_ARRAY = re.compile(r"(?P<type>[a-z]+[0-9]*[a-z0-9]*)\[(?P<shape>[0-9,]*)\](?P<place>\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_NAME = re.compile(r'op_name="([^"]*)"')
_BITS = {"pred": 8, "bf16": 16}
_TRIVIAL = {"parameter", "get-tuple-element", "constant", "compare", "fusion", "bitcast", "copy"}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's type, such as "bf16[8,64]"."""

    type: str
    shape: tuple[int, ...]
    is_near: bool = False  # In the fast memory of a TPU's core.

    @property
    def bytes(self) -> int:
        """Its size."""
        digits = re.search(r"[0-9]+", self.type)
        bits = _BITS.get(self.type) or (int(digits[0]) if digits else 0)
        return math.prod(self.shape) * bits // 8

    def __str__(self) -> str:
        return f"{self.type}[{','.join(map(str, self.shape))}]"


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type: one, or all of a tuple."""
    return tuple(
        Array(
            found["type"],
            tuple(int(size) for size in found["shape"].split(",") if size),
            bool(re.search(r"S\([1-9]\)", found["place"] or "")),
        )
        for found in _ARRAY.finditer(text)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    result: tuple[Array, ...]
    operation: str
    operands: tuple[str, ...]
    line: str

    @property
    def source(self) -> str:
        """Its place in the source, as far as the compiler knows it."""
        found = _NAME.search(self.line)
        return found[1] if found else ""

    @property
    def called(self) -> str | None:
        """The computation of a fusion."""
        found = re.search(r"calls=%?([\w.\-]+)", self.line)
        return found[1] if found else None

    @property
    def is_root(self) -> bool:
        """Whether it is the result of its computation."""
        return self.line.lstrip().startswith("ROOT")


@dataclasses.dataclass(eq=False)
class Part:
    """Instructions that run together: outside of loops, in a round of an open loop, or a branch.

    An open loop is one whose number of rounds is not known before, such as that over the steps of a
    rollout.

    Attributes:
        kind: "program", "loop" or "branch".
        parent: the part around it.
        times: how often it runs in one round of that part; of an open loop, how often it begins.
        instructions: its instructions, with the number of loops around each and how often it runs
            in one round of the part.
    """

    kind: str
    parent: "Part | None" = None
    times: int = 1
    instructions: list[tuple[Instruction, int, int]] = dataclasses.field(default_factory=list)

    @property
    def open_loops(self) -> int:
        """Open loops around it."""
        inside = 0 if self.parent is None else self.parent.open_loops
        return inside + (self.kind == "loop")


class Compiled:
    """An optimised program.

    Attributes:
        computations: the instructions of each computation.
        parts: the parts of the program, each after the part around it.
    """

    def __init__(self, text: str) -> None:
        """Reads `jax.stages.Compiled.as_text()`.

        Raises:
            ValueError: it is no such text.
        """
        self.computations: dict[str, list[Instruction]] = {}
        entry, lines = "", None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                lines = self.computations.setdefault(header["name"], [])
                if line.startswith("ENTRY"):
                    entry = header["name"]
            elif lines is not None and line.startswith("  ") and (read := _instruction(line)):
                lines.append(read)
        if not entry:
            raise ValueError(
                "this is not the text of a compiled program: it has no entry computation"
            )
        self.parts = [Part("program")]
        self._walk(entry, self.parts[0], 0, 1)

    def fused(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of a fusion; none of any other."""
        return self.computations.get(instruction.called or "", [])

    def rounds(self, loop: Instruction) -> int | None:
        """Rounds of a loop; None where they depend on values.

        GPUs and CPUs are told the number. For TPUs it is the constant that the condition compares
        with.
        """
        if known := _ROUNDS.search(loop.line):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
        lines = list(self._with_fused(condition[1])) if condition else []
        bounds = {bound[1] for each in lines if (bound := _BOUND.search(each.line))}
        is_count = all(each.operation in _TRIVIAL for each in lines)
        if is_count and len(bounds) == 1 and any("direction=LT" in each.line for each in lines):
            return int(bounds.pop())
        return None

    def _with_fused(self, name: str) -> Iterator[Instruction]:
        for each in self.computations.get(name, ()):
            yield each
            if each.operation == "fusion" and each.called:
                yield from self._with_fused(each.called)

    def _walk(self, name: str, part: Part, loops: int, times: int) -> None:
        for each in self.computations.get(name, ()):
            part.instructions.append((each, loops, times))
            rounds = self.rounds(each) if each.operation == "while" else None
            inner = part
            if each.operation == "while" and rounds is None:
                # A loop inside of a branch counts as one round of it.
                inner = self._new("loop", part, times) if part.kind != "branch" else part
            for role, called in _CALLED.findall(each.line):
                if role in ("body", "condition"):
                    around = times if inner is part else 1
                    self._walk(called, inner, loops + 1, around * (rounds or 1))
                elif each.operation not in ("fusion", "conditional"):
                    self._walk(called, part, loops, times)
            if each.operation == "conditional":
                self._branches(each, part, loops, times)

    def _branches(self, each: Instruction, part: Part, loops: int, times: int) -> None:
        """All branches of a conditional, as if it took each: all but one hardly do anything."""
        branches = [
            called for role, called in _CALLED.findall(each.line) if role.endswith("_computation")
        ]
        for listed in _BRANCHES.findall(each.line):
            branches += [called.strip().lstrip("%") for called in listed.split(",")]
        if part.kind == "loop":
            part, times = self._new("branch", part, times), 1
        for branch in branches:
            self._walk(branch, part, loops, times)

    def _new(self, kind: str, parent: Part, times: int) -> Part:
        self.parts.append(Part(kind, parent, times))
        return self.parts[-1]


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
    result, rest = _result(rest)
    operation = _OPERATION.match(rest)
    if operation is None:
        return None
    inside = _inside(rest[operation.end() - 1 :])
    return Instruction(
        head["name"], arrays(result), operation["operation"], tuple(_OPERAND.findall(inside)), line
    )


def _result(text: str) -> tuple[str, str]:
    """Splits the type of a result, maybe a tuple, from what follows."""
    if text.startswith("("):
        inside = _inside(text)
        return inside, text[len(inside) + 2 :].lstrip()
    result, _, rest = text.partition(" ")
    return result, rest


def _inside(text: str) -> str:
    """The text between the bracket that it begins with and that one's end."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:index]
    return text[1:]
