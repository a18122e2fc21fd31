"""The base of tasks whose responses are programs, which tests check in a sandbox."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Sequence

from jax_unmask.tasks import prompts, sandbox
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.from_files import FileTask

FENCE = "```"
OPEN_FENCE = FENCE + "python\n"


class CodeTask(FileTask):
    """A task that says which program a response makes and which tests it must pass.

    Args:
        path: as in `FileTask`.
        prompt_style: as in `FileTask`.
        difficulty: as in `FileTask`.
        box: where programs run; None is one sandbox that all tasks of this process share.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prompt_style: prompts.PromptStyle = "training",
        difficulty: str | None = None,
        box: sandbox.Sandbox | None = None,
    ) -> None:
        super().__init__(path, prompt_style=prompt_style, difficulty=difficulty)
        self._box = box

    @abc.abstractmethod
    def job(self, example: Example, response: str) -> sandbox.Job:
        """The program that a response makes, with its tests."""

    def check(self, example: Example, response: str) -> float:
        """1 if the program passes all tests, else 0."""
        return self.check_batch([example], [response])[0]

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` of each response; they run side by side."""
        return self.start_checks(examples, responses)()

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Begins `check_batch`; responses that make the same program run once."""
        box = sandbox.shared() if self._box is None else self._box
        jobs = [self.job(e, r) for e, r in zip(examples, responses, strict=True)]
        running = {job: box.submit(job) for job in dict.fromkeys(jobs)}

        def scores() -> list[float]:
            right = {job: sandbox.outcome(each.result()).right for job, each in running.items()}
            return [float(right[job]) for job in jobs]

        return scores


def opened_code(response: str) -> str:
    """The code of a response that the prompt opened within a fence: all up to the closing one."""
    return response.partition(FENCE)[0]


def fenced_code(response: str) -> str:
    """The code of a response that opens a fence itself: the last one that it opened for Python.

    A response without any fence is code as a whole.
    """
    for opening in (FENCE + "python", FENCE):
        before, mark, rest = response.rpartition(opening)
        if not mark:
            continue
        if opening == FENCE:  # The last fence closes; what it closes begins at the one before.
            _, opened, inside = before.rpartition(FENCE)
            rest = inside if opened else rest
            rest = rest.partition("\n")[2]
        return rest.partition(FENCE)[0].removeprefix("\n")
    return response
