"""Several tasks as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax_unmask.tasks import create, sources
from jax_unmask.tasks.base import Example, Source, Split, Task, start_checks

TAG = "task"


class Mixture:
    """The problems of several tasks, one task after the other; shuffling mixes them.

    Without weights a task counts with as many problems as it has: GSM8K and MATH are about equal
    shares. With weights, each takes its share of a pass of the same length: a task that has fewer
    problems than its share repeats them, one that has more gives its first ones. Each example names
    its task in the field `task`.

    Args:
        tasks: settings of each task by its name, as `jax_unmask.tasks.create` takes them: for
            example `{"gsm8k": {"path": ...}, "math": {"path": ...}}`.
        weights: weight of each task in training; None is its number of problems. Validation and
            test sets are whole, whatever the weights.

    Raises:
        ValueError: if there are no tasks, for an unknown task or setting, and for weights that are
            negative, are not of these tasks, or sum to zero.
    """

    def __init__(
        self,
        tasks: Mapping[str, Mapping[str, Any]],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not tasks:
            raise ValueError("tasks={} is empty; a mixture needs at least one task")
        if weights is not None:
            _check_weights(weights, list(tasks))
        self._weights = weights
        self._tasks: dict[str, Task] = {
            name: create(name, **settings) for name, settings in tasks.items()
        }
        self.name = "_".join(self._tasks)

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split of every task."""
        parts = {name: task.source(split, seed=seed) for name, task in self._tasks.items()}
        if self._weights is not None and split == "train":
            parts = _weighted(parts, self._weights)
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
        return self.start_checks(examples, responses)()

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Begins `check_batch`; the slow checks of all tasks run side by side."""
        started = []
        for name, task in self._tasks.items():
            rows = [row for row, example in enumerate(examples) if example[TAG] == name]
            own = [examples[row] for row in rows], [responses[row] for row in rows]
            started.append((rows, start_checks(task, *own)))

        def scores() -> list[float]:
            found = [0.0] * len(examples)
            for rows, finish in started:
                for row, score in zip(rows, finish(), strict=True):
                    found[row] = score
            return found

        return scores


class _Repeated:
    """A source as often over as makes up a length."""

    def __init__(self, source: Source, length: int) -> None:
        self._source = source
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self._source[int(index) % len(self._source)]


def _weighted(parts: Mapping[str, Source], weights: Mapping[str, float]) -> dict[str, Source]:
    total, whole = sum(weights.values()), sum(map(len, parts.values()))
    lengths = {name: round(whole * weights.get(name, 0.0) / total) for name in parts}
    return {name: _Repeated(parts[name], size) for name, size in lengths.items() if size}


def _check_weights(weights: Mapping[str, float], names: Sequence[str]) -> None:
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise ValueError(f"weights={dict(weights)} are of {unknown} too; the tasks are {names}")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"weights[{name!r}]={weight} must be a number of at least 0")
    if not sum(weights.values()):
        raise ValueError(
            f"weights={dict(weights)} sum to 0; give at least one task a positive weight"
        )
