"""Test sets of competition mathematics: MATH-500, AIME 2024 and 2025, AMC 2023."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from jax_unmask.tasks import prompts
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.from_files import FileTask
from jax_unmask.tasks.math import Math


class Competition(FileTask):
    """Problems with one answer each; prompts and checks are those of task `math`.

    An example has a `problem` (or `question`) and an `answer`, text or a number; it may have a
    `solution`.

    Args:
        path: the file, a directory that holds it under the task's name, or hub:OWNER/NAME.
        prompt_style: as of task `math`.
        equivalence: as of task `math`.
        reference_compat: as of task `math`.
    """

    fields = ()
    test_only = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prompt_style: prompts.PromptStyle = "training",
        equivalence: str = "symbolic",
        reference_compat: bool = False,
    ) -> None:
        super().__init__(path, prompt_style=prompt_style)
        self._math = Math(
            path,
            prompt_style=prompt_style,
            equivalence=equivalence,
            reference_compat=reference_compat,
        )

    def verify(self, example: Example) -> None:
        """Puts the fields into `math`'s form; refuses examples without a problem or an answer."""
        problem, answer = example.get("problem", example.get("question")), example.get("answer")
        if not isinstance(problem, str):
            raise ValueError(f"field 'problem' (or 'question') must be text, found {problem!r}")
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(f"field 'answer' must be text or a number, found {answer!r}")
        if not str(answer).strip():
            raise ValueError("field 'answer' must not be blank")
        solution = example.get("solution") or ""
        example.update(problem=problem, answer=str(answer), solution=str(solution))

    def prompt(self, example: Example) -> prompts.Messages:
        """The prompt of task `math`."""
        return self._math.prompt(example)

    def target(self, example: Example) -> str:
        """The data set's solution, where there is one, with its answer."""
        return self._math.target(example)

    def check(self, example: Example, response: str) -> float:
        """The score of task `math`."""
        return self._math.check(example, response)

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """The scores of task `math`."""
        return self._math.check_batch(examples, responses)

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Begins the checks of task `math`."""
        return self._math.start_checks(examples, responses)


class Math500(Competition):
    """MATH-500: 500 problems of MATH's test set (Lightman et al., arXiv 2305.20050)."""

    name = test_stem = "math500"


class Aime24(Competition):
    """AIME 2024, both papers: 30 problems, e.g. `hub:HuggingFaceH4/aime_2024` as a file."""

    name = test_stem = "aime24"


class Aime25(Competition):
    """AIME 2025, both papers: 30 problems."""

    name = test_stem = "aime25"


class Amc23(Competition):
    """AMC 12 of 2023: 40 problems."""

    name = test_stem = "amc23"
