"""The programs of a training step, compiled ahead of time: nothing of their size is allocated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from jax_unmask.planning import timing
from jax_unmask.planning.collectives import Collective, collectives, received
from jax_unmask.planning.compiled import Compiled, Part
from jax_unmask.recipes.base import TracedProgram, bytes_per_device
from jax_unmask.runtime.accelerators import Accelerator


@dataclasses.dataclass(frozen=True)
class Round:
    """Traffic and time of a device, once per call or in each round of a program's open loop.

    Attributes:
        name: "once", "per forward", "per full forward" or "per chunk of states".
        bytes: what a device receives in collectives.
        exposed: of it what other work does not overlap.
        wide: bytes of gathers in float32.
        seconds: of its operations by kind, without collectives; empty for CPUs.
    """

    name: str
    bytes: int
    exposed: int
    wide: int
    seconds: dict[str, float]

    def shortest(self, link: float) -> float:
        """Seconds, were collectives overlapped wherever the compiler has made that possible."""
        own = sum(self.seconds.values())
        return max(own, (self.bytes - self.exposed) / link) + self.exposed / link

    def longest(self, link: float) -> float:
        """Seconds, were nothing overlapped."""
        return sum(self.seconds.values()) + self.bytes / link

    def __add__(self, other: Round) -> Round:
        """The sums of both, under the first's name."""
        seconds = dict(self.seconds)
        for kind, value in other.seconds.items():
            seconds[kind] = seconds.get(kind, 0.0) + value
        return Round(
            self.name,
            self.bytes + other.bytes,
            self.exposed + other.exposed,
            self.wide + other.wide,
            seconds,
        )

    def over(self, times: int) -> Round:
        """A share of it: one of so many times."""
        return Round(
            self.name,
            self.bytes // times,
            self.exposed // times,
            self.wide // times,
            {kind: value / times for kind, value in self.seconds.items()},
        )


@dataclasses.dataclass(frozen=True)
class Program(TracedProgram):
    """A traced program, and what compiling it tells (None unless compiled)."""

    temporary_bytes: int | None = None  # On each device, beside arguments and results.
    collectives: tuple[Collective, ...] | None = None  # What devices send each other.
    rounds: tuple[Round, ...] = ()
    seconds_to_compile: float | None = None
    text: str = dataclasses.field(default="", repr=False)  # The optimised program.

    @classmethod
    def of(
        cls,
        traced: TracedProgram,
        *,
        compiled: bool,
        device: Accelerator | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Program:
        """The program, compiled for the devices that it was traced for where that is asked for.

        `device` is the one for which the time of its operations is estimated (None for none);
        `options` are flags of the compiler.
        """
        shown = {each.name: getattr(traced, each.name) for each in dataclasses.fields(traced)}
        program = cls(**shown)
        if not compiled:
            return program
        start = time.perf_counter()
        executable = traced.lowered.compile(compiler_options=dict(options or {}) or None)
        seconds = time.perf_counter() - start
        memory, text = executable.memory_analysis(), executable.as_text()
        read = Compiled(text)
        found = tuple(collectives(read))
        return dataclasses.replace(
            program,
            temporary_bytes=memory.temp_size_in_bytes + bytes_per_device(traced.made),
            collectives=found,
            rounds=rounds(traced.name, read, found, device),
            seconds_to_compile=seconds,
            text=text,
        )


def rounds(
    name: str, program: Compiled, found: Sequence[Collective], device: Accelerator | None
) -> tuple[Round, ...]:
    """The part that runs once, then those that run in each round.

    A rollout scans several forwards in a round of its loop, each in a branch, after the loop of the
    full forwards that fill a cache. An update has one open loop, or none, over chunks of states.
    """

    def measure(name: str, part: Part) -> Round:
        everything, exposed = received(found, part)
        gathers = [each for each in found if each.part is part and each.kind == "all-gather"]
        wide = sum(
            each.bytes * each.times
            for each in gathers
            if all(array.startswith("f32") for array in each.arrays)
        )
        seconds = {} if device is None else timing.seconds(program, part, device)
        return Round(name, everything, exposed, wide, seconds)

    entry, *inner = program.parts
    listed = [measure("once", entry)]
    unit = "per forward" if "rollout" in name else "per chunk of states"
    branches = [part for part in inner if part.kind == "branch"]
    outer = {id(part.parent) for part in inner}
    for part in inner:
        if part.kind == "branch":
            each = measure(unit, part)
            if part.parent is not None:
                each += measure("", part.parent).over(part.times)
            listed.append(each)
        elif branches and part.open_loops > 1:
            listed.append(measure("per full forward", part))
        elif not branches and id(part) not in outer:
            listed.append(measure(unit, part))
        elif not branches:
            listed[0] += measure("", part)
    return tuple(listed)
