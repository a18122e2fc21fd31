"""Several tasks as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax_unmask.tasks import create, sources
from jax_unmask.tasks.base import Example, Source, Split, Task

TAG = "task"


class Mixture:
    """The problems of several tasks, one task after the other; shuffling mixes them.

    A task counts with as many problems as it has: GSM8K and MATH are about equal shares. Each
    example names its task in the field `task`.

    Args:
        tasks: settings of each task by its name, as `jax_unmask.tasks.create` takes them: for
            example `{"gsm8k": {"path": ...}, "math": {"path": ...}}`.

    Raises:
        ValueError: if there are no tasks, or for an unknown task or setting.
    """

    def __init__(self, tasks: Mapping[str, Mapping[str, Any]]) -> None:
        if not tasks:
            raise ValueError("tasks={} is empty; a mixture needs at least one task")
        self._tasks: dict[str, Task] = {
            name: create(name, **settings) for name, settings in tasks.items()
        }
        self.name = "_".join(self._tasks)

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split of every task."""
        parts = {name: task.source(split, seed=seed) for name, task in self._tasks.items()}
        return sources.Concatenation(parts, TAG)

    def prompt(self, example: Example) -> str | list[dict[str, str]]:
        """The prompt of the example's own task."""
        return self._tasks[example[TAG]].prompt(example)

    def target(self, example: Example) -> str:
        """The target of the example's own task."""
        return self._tasks[example[TAG]].target(example)

    def check(self, example: Example, response: str) -> float:
        """The score that the example's own task gives."""
        return self._tasks[example[TAG]].check(example, response)

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` of each response; each task checks all of its own at once."""
        scores = [0.0] * len(examples)
        for name, task in self._tasks.items():
            rows = [row for row, example in enumerate(examples) if example[TAG] == name]
            own = task.check_batch([examples[i] for i in rows], [responses[i] for i in rows])
            for row, score in zip(rows, own, strict=True):
                scores[row] = score
        return scores
