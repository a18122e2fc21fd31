"""A judge that checks steps exactly, for tasks whose steps can be verified."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jax_unmask.tasks.base import Example
from jax_unmask.tasks.judges.base import Solution


class TextStep(NamedTuple):
    """A step of a response.

    Attributes:
        end: character after its last one.
        right: it follows from the problem and from the steps before it.
    """

    end: int
    right: bool


@runtime_checkable
class VerifiableSteps(Protocol):
    """A task that verifies the steps of a response."""

    def check_steps(self, example: Example, response: str) -> list[TextStep]:
        """The steps of a response, in the order of their ends."""
        ...


def with_steps(
    story: str, task: VerifiableSteps, example: Example, response: str | None = None
) -> str:
    """A story, and below it the steps of a response, each marked as right or wrong."""
    if response is None:
        return story
    lines, start = [story], 0
    for step in task.check_steps(example, response):
        lines.append(f"{'✓' if step.right else '✗'} {response[start : step.end].strip()}")
        start = step.end
    rest = response[start:].strip()
    return "\n".join([*lines, *([f"  {rest}"] if rest else [])])


class StepJudge:
    """Scores a chunk by the steps that end in it: 1 if all are right, -1 if one is wrong, else 0.

    Args:
        task: a task with verifiable steps.

    Raises:
        ValueError: the task has none.
    """

    def __init__(self, task: object) -> None:
        if not isinstance(task, VerifiableSteps):
            raise ValueError(
                f"the steps of task {getattr(task, 'name', task)!r} cannot be verified: it has no "
                "check_steps; choose a task that has, or another judge"
            )
        self._task = task

    def judge(self, solutions: Sequence[Solution]) -> list[list[float]]:
        """Scores of all chunks; see `Judge`."""
        return [self._judge(solution) for solution in solutions]

    def _judge(self, solution: Solution) -> list[float]:
        steps = self._task.check_steps(solution.example, "".join(solution.chunks))
        ends = list(itertools.accumulate(map(len, solution.chunks)))
        scores = []
        for start, end in zip([0, *ends], ends, strict=False):
            # A step that ends where a chunk does belongs to it.
            inside = [step.right for step in steps if start < step.end <= end]
            scores.append(0.0 if not inside else 1.0 if all(inside) else -1.0)
        return scores
