"""The collectives of a compiled program, and their bytes."""

import dataclasses
import math
import re
from collections.abc import Iterable

from jax_unmask.planning.compiled import Compiled, Instruction, Part

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_GROUPS = re.compile(r"replica_groups=(\{\{.*?\}\}|\[[0-9,]+\]<=|mesh\[.*?\] \{.*?\})")
_AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """One collective of a program.

    Attributes:
        times: how often it runs in one round of its part.
        part: that part, see `compiled.Part`.
        overlaps: other work runs while it does, as far as there is any.
    """

    loops: int  # That it is inside of; 0 for once per call of the program.
    kind: str  # One of `KINDS`.
    arrays: tuple[str, ...]  # What it gives each device, such as "f32[8,64]".
    bytes: int  # Size of that.
    group: int  # Devices that take part in one exchange.
    # Its place in the source, as far as the compiler knows it.
    name: str = dataclasses.field(default="", compare=False)
    times: int = dataclasses.field(default=1, compare=False)
    overlaps: bool = dataclasses.field(default=False, compare=False)
    part: Part = dataclasses.field(default_factory=lambda: Part("program"), compare=False)

    def __str__(self) -> str:
        depth = f" in {self.loops} loops" if self.loops else ""
        return f"{self.kind} {' '.join(self.arrays)} among {self.group}{depth}"


def collectives(text: str | Compiled) -> list[Collective]:
    """The collectives of an optimised program.

    A TPU's asynchronous collective is a chain of fusions that all hold it, and counts once. Its
    reduce-scatters are fusions of an all-reduce and a slice.

    Args:
        text: `jax.stages.Compiled.as_text()`, or that text as read.

    Returns:
        All that more than one device takes part in, sorted; those of a computation that is called
        from several places once for each.
    """
    program = text if isinstance(text, Compiled) else Compiled(text)
    found: list[Collective] = []
    for part in program.parts:
        chains: set[tuple[str, ...]] = set()
        for outer, loops, times in part.instructions:
            for each in (outer, *program.fused(outer)):
                kind = each.operation.removesuffix("-start")
                if kind not in KINDS:
                    continue
                is_chain = each is not outer and _is_asynchronous(program.fused(outer), outer)
                if is_chain:
                    channel = _CHANNEL.search(each.line)
                    chain = (channel[1] if channel else "", kind, *map(str, each.result))
                    if chain in chains:
                        continue
                    chains.add(chain)
                overlaps = is_chain or _starts(each)
                if (outer.called or "").startswith("all-reduce-scatter"):
                    each, kind = dataclasses.replace(each, result=outer.result), "reduce-scatter"
                if (read := _read(each, kind, loops)) is not None:
                    found.append(
                        dataclasses.replace(read, part=part, times=times, overlaps=overlaps)
                    )
    return sorted(found)


def received(found: Iterable[Collective], part: Part) -> tuple[int, int]:
    """Bytes that a device receives in one round of a part, and those that nothing overlaps."""
    mine = [each for each in found if each.part is part]

    def bytes_of(mine: list[Collective]) -> int:
        # A scattered sum gives a device one shard, for which it receives those of all.
        shards = [each.group if each.kind == "reduce-scatter" else 1 for each in mine]
        return sum(each.bytes * n * each.times for each, n in zip(mine, shards, strict=True))

    return bytes_of(mine), bytes_of([each for each in mine if not each.overlaps])


def _is_asynchronous(fused: list[Instruction], outer: Instruction) -> bool:
    """Whether a fusion is a link of the chain of an asynchronous collective."""
    return (outer.called or "").startswith("async_collective") or any(
        'custom_call_target="AsyncCollective' in each.line for each in fused
    )


def _starts(each: Instruction) -> bool:
    """Whether an instruction begins a collective that another one ends, with work between them.

    GPUs have such pairs for collectives too that end before anything else begins.
    """
    return each.operation.endswith("-start") and '"is_sync":true' not in each.line


def _read(each: Instruction, kind: str, loops: int) -> Collective | None:
    """The collective of an instruction, if several devices take part."""
    result = each.result
    if kind != "all-reduce" and each.operation.endswith("-start"):
        # Its operands come before its results; those of a permutation also have contexts after.
        result = tuple(array for array in result if array.shape or array.type != "u32")
        result = result[len(result) // 2 :]
    groups = _GROUPS.search(each.line)
    size = _group_size(groups[1]) if groups else 2
    if size < 2:
        return None
    total = sum(array.bytes for array in result)
    return Collective(loops, kind, tuple(map(str, result)), total, size, each.source)


def _group_size(groups: str) -> int:
    """Devices per group, from "{{0,1},{2,3}}", "[2,2]<=[4]" or "mesh['a'=2,'b'=2] {'a'}"."""
    if groups.startswith("mesh"):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups))
        used = _AXIS.findall(groups.rpartition("{")[2])
        return math.prod(int(part or sizes[axis]) for axis, part in used)
    if groups.startswith("{{"):
        return groups[2:].split("}")[0].count(",") + 1
    return int(groups[1:].split("]")[0].split(",")[-1])
