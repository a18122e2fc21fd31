"""The programs of a training step, compiled ahead of time: nothing of their size is allocated."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jax_unmask.planning import timing
from jax_unmask.planning.collectives import Collective, collectives, received
from jax_unmask.planning.compiled import Compiled, Part
from jax_unmask.recipes.base import TracedProgram, bytes_per_device
from jax_unmask.runtime import accelerators
from jax_unmask.runtime.accelerators import Accelerator


@dataclasses.dataclass(frozen=True)
class Round:
    """Traffic and time of a device, once per call or in each round of a program's open loop.

    Attributes:
        name: such as "once", "per forward", "per full forward" or "per chunk of states".
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

    def __add__(self, other: "Round") -> "Round":
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

    def __mul__(self, times: float) -> "Round":
        """It so many times, or a share of it."""
        return Round(
            self.name,
            int(self.bytes * times),
            int(self.exposed * times),
            int(self.wide * times),
            {kind: value * times for kind, value in self.seconds.items()},
        )


@dataclasses.dataclass(frozen=True)
class Program(TracedProgram):
    """A traced program, and what compiling it tells (None unless compiled).

    Attributes:
        temporary_bytes: on each device, beside arguments and results.
        argument_bytes: of its arguments on each device, by the compiler, which may pad them.
        shaped_bytes: of those arguments by their shapes.
        peak_bytes: at one time, arguments and results included; None where the compiler tells none.
        collectives: what devices send each other.
        text: the optimised program.
    """

    temporary_bytes: int | None = None
    argument_bytes: int | None = None
    shaped_bytes: int | None = None
    peak_bytes: int | None = None
    collectives: tuple[Collective, ...] | None = None
    rounds: tuple[Round, ...] = ()
    seconds_to_compile: float | None = None
    text: str = dataclasses.field(default="", repr=False)

    @classmethod
    def of(
        cls,
        traced: TracedProgram,
        *,
        compiled: bool,
        device: Accelerator | None = None,
        options: Mapping[str, str] | None = None,
    ) -> "Program":
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
            argument_bytes=memory.argument_size_in_bytes,
            shaped_bytes=bytes_per_device(_arguments(traced.lowered, executable)),
            # XLA for CPUs leaves the temporaries out.
            peak_bytes=None if accelerators.platform() == "cpu" else memory.peak_memory_in_bytes,
            collectives=found,
            rounds=rounds(traced.name, read, found, device),
            seconds_to_compile=seconds,
            text=text,
        )


def _arguments(lowered: Any, executable: Any) -> list[jax.ShapeDtypeStruct]:
    """The arguments that a compiled program reads, where it reads them."""
    given, structure = jax.tree.flatten(lowered.args_info)
    places = structure.flatten_up_to(executable.input_shardings)  # type: ignore[attr-defined]
    return [
        jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=place)
        for each, place in zip(given, places, strict=True)
        if place is not None
    ]


def rounds(
    name: str, program: Compiled, found: Sequence[Collective], device: Accelerator | None
) -> tuple[Round, ...]:
    """The part that runs once, then those that run in each round.

    A rollout scans several forwards in a round of its loop, each in a branch, after the loop of the
    full forwards that fill a cache. An update has an open loop over chunks of states; where it has
    all of a batch at once, loops of the head over positions. Open loops in these count with one
    round each time they begin, and are listed again behind what they are in.
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

    def nested(part: Part) -> Round:
        """A round of each part in this one, as often as it begins."""
        found = Round("", 0, 0, 0, {})
        for each in inner:
            if each.parent is part:
                found += (measure("", each) + nested(each)) * each.times
        return found

    entry, *inner = program.parts
    listed, unit, steps = [measure("once", entry)], "per chunk of states", []
    if "rollout" in name:
        unit = "per forward"
        steps = [part.parent for part in inner if part.kind == "branch" and part.open_loops == 1]
    for part in inner:
        parent = part.parent
        if part.kind == "branch" and parent in steps:
            assert parent is not None
            listed.append(measure(unit, part) + measure("", parent) * (1 / part.times))
        elif part not in steps and (parent is entry or parent in steps):
            title, within = unit, nested(part)
            kinds = {timing.kind(program, each) for each, _, _ in part.instructions}
            is_forward = "products of layers" in kinds
            if parent in steps:
                title = "per full forward" if is_forward else "per round of another loop"
            elif "head" in kinds and not is_forward:
                title = "per chunk of positions"
            listed.append(measure(title, part) + within)
            if any(each.parent is part for each in inner):
                listed.append(dataclasses.replace(within, name=f"{title}: loops in it"))
    return tuple(listed)
