"""Tasks: problems, prompts, target responses and checkers."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

Example = dict[str, Any]
Split = Literal["train", "validation", "test"]
Prompt = str | list[dict[str, str]]
"""Plain text, or chat messages for the tokenizer's chat template."""


class Source(Protocol):
    """Random access to a split's examples; `grain.MapDataset.source` accepts it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Task(Protocol):
    """One family of problems, text in, text out. A class may inherit `check_batch` from here."""

    @property
    def name(self) -> str:
        """Short name, as configs and result rows spell it."""
        ...

    @abc.abstractmethod
    def source(self, split: Split, *, seed: int = 0) -> Source:
        """Examples of a split. `seed` matters only to tasks that generate their problems."""
        ...

    @abc.abstractmethod
    def prompt(self, example: Example) -> Prompt:
        """The prompt; see `jax_unmask.tasks.prompts` for prompts that open the response."""
        ...

    @abc.abstractmethod
    def target(self, example: Example) -> str:
        """A right response, for supervised training."""
        ...

    @abc.abstractmethod
    def check(self, example: Example, response: str) -> float:
        """Score of a response in [0, 1]; 1 is right. `response` ends before the first EOS."""
        ...

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` of each response."""
        return [self.check(*pair) for pair in zip(examples, responses, strict=True)]


@runtime_checkable
class Drawn(Protocol):
    """A task that draws its problems for people: in `generate`, reports and the viewer."""

    def render(self, example: Example, response: str | None = None) -> str:
        """A problem as people read it, and a response to it if there is one."""
        ...


def rendered(task: Task, example: Example, response: str | None = None) -> str:
    """A problem as people read it, and a response to it if there is one; else the texts."""
    if isinstance(task, Drawn):
        return task.render(example, response)
    prompt = task.prompt(example)
    if not isinstance(prompt, str):
        prompt = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    return prompt if response is None else f"{prompt}\n\n{response}"


def drawing(task: Task, example: Example, response: str) -> str:
    """A response as its task draws it, without the problem before it; empty if it does not."""
    if not isinstance(task, Drawn):
        return ""
    problem = task.render(example)
    return task.render(example, response).removeprefix(problem + "\n").lstrip("\n")


@runtime_checkable
class SlowTask(Task, Protocol):
    """A task whose checks run in worker processes while the caller does other work.

    A class that inherits from here writes `start_checks` and no other check.
    """

    @abc.abstractmethod
    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Starts `check_batch`; returns a function that waits for the scores.

        May wait itself while the workers have too much to do.
        """
        ...

    def check(self, example: Example, response: str) -> float:
        """Score of a response in [0, 1]."""
        return self.check_batch([example], [response])[0]

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` of each response."""
        return self.start_checks(examples, responses)()


def start_checks(
    task: Task, examples: Sequence[Example], responses: Sequence[str]
) -> Callable[[], list[float]]:
    """Starts to check responses; a `SlowTask` goes on while the caller does other work.

    Returns:
        A function that gives `task.check_batch(examples, responses)`.
    """
    if isinstance(task, SlowTask):
        return task.start_checks(examples, responses)
    scores = task.check_batch(examples, responses)
    return lambda: scores
