"""Test sets of competition mathematics: MATH-500, AIME 2024 and 2025, AMC 2023."""

import dataclasses

from jax_unmask.settings import setting_of
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.checkers import answers
from jax_unmask.tasks.math import Equivalence, Math


@dataclasses.dataclass(frozen=True, kw_only=True)
class Competition(Math):
    """Problems with one answer each; prompts and checks are those of task `math`.

    An example has a `problem` (or `question`) and an `answer`, text or a number, or else a
    `solution` with a box; names of fields may be capitalised.
    """

    folders = ()
    test_only = True

    equivalence: Equivalence = setting_of(Math, "equivalence", default="symbolic")

    def parse(self, example: Example) -> Example:
        """The record in the form of task `math`; refuses those without a problem or an answer."""
        example = {name.lower(): value for name, value in example.items()}
        problem, answer = example.get("problem", example.get("question")), example.get("answer")
        answer = example.get("ground_truth_answer") if answer is None else answer
        if answer is None and (boxes := answers.boxes(str(example.get("solution", "")))):
            answer = boxes[-1]
        if not isinstance(problem, str):
            raise ValueError(f"field 'problem' (or 'question') must be text, found {problem!r}")
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(f"field 'answer' must be text or a number, found {answer!r}")
        if not str(answer).strip():
            raise ValueError("field 'answer' must not be blank")
        solution = str(example.get("solution") or "")
        return {**example, "problem": problem, "answer": str(answer), "solution": solution}


class Math500(Competition):
    """MATH-500: 500 problems of MATH's test set (Lightman et al., arXiv 2305.20050)."""

    name = test_stem = "math500"
    hub = "HuggingFaceH4/MATH-500"


class Aime24(Competition):
    """AIME 2024, both papers: 30 problems."""

    name = "aime24"
    test_stem = "aime24|aime_2024.*"
    hub = "HuggingFaceH4/aime_2024"


class Aime25(Competition):
    """AIME 2025, both papers: 30 problems, in one file or in two."""

    name = "aime25"
    test_stem = "aime25|aime_?2025.*"
    hub = "math-ai/aime25"


class Amc23(Competition):
    """AMC 12 of 2023: 40 problems."""

    name = test_stem = "amc23"
    hub = "math-ai/amc23"
