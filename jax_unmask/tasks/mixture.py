"""Several tasks as one."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from jax_unmask.tasks import sources
from jax_unmask.tasks.base import (
    Example,
    Prompt,
    SlowTask,
    Source,
    Split,
    Task,
    rendered,
    start_checks,
)

TAG = "task"


@dataclasses.dataclass(frozen=True)
class Mixture(SlowTask):
    """The problems of several tasks, one task after the other; shuffling mixes them.

    Without weights a task counts with as many problems as it has: GSM8K and MATH are about equal
    shares. With weights, each takes its share of a pass of the same length: a task that has fewer
    problems than its share repeats them, one that has more gives its first ones. Each example names
    its task in the field `task`.

    Attributes:
        tasks: the tasks by name.
        weights: weight of each task in training; None is its number of problems. Validation and
            test sets are whole, whatever the weights.

    Raises:
        ValueError: if there are no tasks, and for weights that are negative, are not of these
            tasks, or sum to zero.
    """

    tasks: Mapping[str, Task]
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks={} is empty; a mixture needs at least one task")
        if self.weights is None:
            return
        weights = dict(self.weights)
        if unknown := sorted(set(weights) - set(self.tasks)):
            raise ValueError(f"{weights=} are of {unknown} too; the tasks are {list(self.tasks)}")
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights[{name!r}]={weight} must be a number of at least 0")
        if not sum(weights.values()):
            raise ValueError(f"{weights=} sum to 0; give at least one task a positive weight")

    @property
    def name(self) -> str:
        """The names of the tasks, joined."""
        return "_".join(self.tasks)

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split of every task."""
        whole = {name: task.source(split, seed=seed) for name, task in self.tasks.items()}
        if self.weights is None or split != "train":
            return sources.Concatenation(whole, TAG)
        examples, total = sum(map(len, whole.values())), sum(self.weights.values())
        shares = {}
        for name, source in whole.items():
            if length := round(examples * self.weights.get(name, 0.0) / total):
                shares[name] = sources.Repeated(source, length)
        return sources.Concatenation(shares, TAG)

    def prompt(self, example: Example) -> Prompt:
        """The prompt of the task that the example is from."""
        return self.tasks[example[TAG]].prompt(example)

    def target(self, example: Example) -> str:
        """The target of the task that the example is from."""
        return self.tasks[example[TAG]].target(example)

    def render(self, example: Example, response: str | None = None) -> str:
        """The drawing of the task that the example is from."""
        return rendered(self.tasks[example[TAG]], example, response)

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Starts `check_batch`; each task checks its examples at once, all tasks side by side."""
        started = []
        for name, task in self.tasks.items():
            rows = [row for row, example in enumerate(examples) if example[TAG] == name]
            batch = [examples[row] for row in rows], [responses[row] for row in rows]
            started.append((rows, start_checks(task, *batch)))

        def scores() -> list[float]:
            found = {row: s for rows, wait in started for row, s in zip(rows, wait(), strict=True)}
            return [found[row] for row in range(len(examples))]

        return scores
