"""The base of tasks whose responses are programs, which tests check in a sandbox."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence

from jax_unmask.tasks import sandbox
from jax_unmask.tasks.base import Example, SlowTask
from jax_unmask.tasks.from_files import FileTask

FENCE = "```"
OPEN_FENCE = FENCE + "python\n"


@dataclasses.dataclass(frozen=True)
class CodeTask(SlowTask, FileTask):
    """A task whose responses are programs, checked by running tests.

    Attributes:
        box: where programs run; None is one sandbox that all tasks of this process share.
    """

    _: dataclasses.KW_ONLY
    box: sandbox.Sandbox | None = None

    @abc.abstractmethod
    def job(self, example: Example, response: str) -> sandbox.Job:
        """The program that a response makes, with its tests."""

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Starts `check_batch`; responses that make the same program run once."""
        box = self.box or sandbox.shared()
        jobs = [self.job(e, r) for e, r in zip(examples, responses, strict=True)]
        running = {job: box.submit(job) for job in dict.fromkeys(jobs)}

        def scores() -> list[float]:
            right = {job: sandbox.outcome(each.result()).right for job, each in running.items()}
            return [float(right[job]) for job in jobs]

        return scores


def opened_code(response: str) -> str:
    """The code of a response that the prompt opened within a fence: all up to the closing one."""
    return response.partition(FENCE)[0]
