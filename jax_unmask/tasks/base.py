"""What a task is: problems, prompts, target responses and a checker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

Example = dict[str, Any]
Split = Literal["train", "validation", "test"]


class Source(Protocol):
    """Random access to a split's examples; what `grain.MapDataset.source` accepts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Task(Protocol):
    """One family of problems. Text in, text out: a task knows nothing of models.

    Attributes:
        name: short name, as configs and result rows spell it.
    """

    name: str

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """Examples of a split. `seed` matters only to tasks that generate their problems."""
        ...

    def prompt(self, example: Example) -> str | list[dict[str, str]]:
        """The prompt: plain text, or chat messages for the tokenizer's chat template."""
        ...

    def target(self, example: Example) -> str:
        """A right response, for supervised training."""
        ...

    def check(self, example: Example, response: str) -> float:
        """Score of a response in [0, 1]; 1 is right. `response` ends before the first EOS."""
        ...

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` over a batch."""
        ...


@runtime_checkable
class SlowChecks(Protocol):
    """A task whose checks take long, and run in worker processes meanwhile."""

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Begins `check_batch`; the function that it returns waits for the scores.

        May wait itself while the workers have too much to do.
        """
        ...


def start_checks(
    task: Task, examples: Sequence[Example], responses: Sequence[str]
) -> Callable[[], list[float]]:
    """Begins to check responses, beside what the caller does next where the task's checks are slow.

    Returns:
        A function that gives `task.check_batch(examples, responses)`.
    """
    if isinstance(task, SlowChecks):
        return task.start_checks(examples, responses)
    scores = task.check_batch(examples, responses)
    return lambda: scores
