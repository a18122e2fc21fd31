"""The programs of a training step, compiled ahead of time: nothing of their size is allocated."""

from __future__ import annotations

import dataclasses
import time

from jax_unmask.planning.collectives import Collective, collectives
from jax_unmask.recipes.base import TracedProgram


@dataclasses.dataclass(frozen=True)
class Program(TracedProgram):
    """A traced program, and what compiling it tells (None unless compiled)."""

    temporary_bytes: int | None = None  # Of each device, beside arguments and results.
    collectives: tuple[Collective, ...] | None = None  # What devices send each other.
    seconds_to_compile: float | None = None

    @classmethod
    def of(cls, traced: TracedProgram, *, compiled: bool) -> Program:
        """The program, compiled for the devices that it was traced for where that is asked for."""
        program = cls(traced.name, traced.lowered, traced.has_denoiser)
        if not compiled:
            return program
        start = time.perf_counter()
        executable = traced.lowered.compile()
        return dataclasses.replace(
            program,
            temporary_bytes=executable.memory_analysis().temp_size_in_bytes,
            collectives=tuple(collectives(executable.as_text())),
            seconds_to_compile=time.perf_counter() - start,
        )
