"""MATH: competition mathematics with LaTeX answers (Hendrycks et al., arXiv 2103.03874)."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from jax_unmask.tasks import files, prompts, sources
from jax_unmask.tasks.base import Example, Source, Split
from jax_unmask.tasks.checkers import answers, latex, published, symbolic
from jax_unmask.tasks.difficulty import Band

EQUIVALENCES = ("string", "symbolic")


class Math:
    """MATH. An example has a `problem`, and a `solution` that boxes its answer.

    The validation split is every 15th problem of the training file (500 of 7,500); the training
    split is the rest, the test split the test file (5,000 problems, or the 500 of MATH-500).
    Problems whose solution has an empty box (two of the 7,500) have no right answer and are left
    out, except with `reference_compat`.

    Args:
        path: a directory with `train.jsonl` and `test.jsonl` (plain or gzipped), or one such file.
        test_file: name of the test file in that directory without suffix, such as "math500".
        prompt_style: "training" asks for reasoning and answer tags and a box; "evaluation" shows
            the box in the format, and opens the response with `<reasoning>`.
        equivalence: how answers are compared: "string" compares normal forms; "symbolic" values
            as well, by math-verify in worker processes.
        difficulty: part of the training set to use, such as "level:3..5"; see `difficulty.Band`.
        reference_compat: score as the published code does, faults included: a response without a
            box is an answer as a whole, and two missing answers are the same.

    Raises:
        ValueError: for an unknown prompt style or equivalence.
    """

    name = "math"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        test_file: str = "test",
        prompt_style: prompts.PromptStyle = "training",
        equivalence: str = "string",
        difficulty: str | None = None,
        reference_compat: bool = False,
    ) -> None:
        prompts.check_style(prompt_style)
        if equivalence not in EQUIVALENCES:
            raise ValueError(
                f"equivalence={equivalence!r} is unknown; choose one of {list(EQUIVALENCES)}"
            )
        self._path = path
        self._test_file = test_file
        self._style = prompt_style
        self._symbolic = equivalence == "symbolic" and not reference_compat
        self._reference_compat = reference_compat
        self._band = None if difficulty is None else Band.parse(difficulty)

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split, in the order of the files; the seed plays no part."""
        del seed
        open_file = _open_all if self._reference_compat else _open_answered
        source = sources.local_split(self._path, split, open_file, test_stem=self._test_file)
        return source if self._band is None or split == "test" else self._band.select(source)

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt; see `jax_unmask.tasks.prompts` for the opened response."""
        return prompts.math_messages(example["problem"], self._style)

    def target(self, example: Example) -> str:
        """The data set's solution in the format that the prompt asks for."""
        answer = gold(example)
        # Training's format asks for the answer in a box as well, which the solution holds.
        shown = f"\\boxed{{{answer}}}" if self._style == "training" else answer
        return prompts.worked_response(example["solution"].strip(), shown, self._style)

    def check(self, example: Example, response: str) -> float:
        """1 if the response's final expression is the right answer, else 0."""
        return self.check_batch([example], [response])[0]

    def _check_as_published(self, example: Example, response: str) -> bool:
        if self._style == "evaluation":
            answer = published.math_answer_for_evaluation(response)
            right = example.get("answer", published.math_answer(example["solution"]))
            return answer is not None and latex.is_equiv(answer, right, reference_compat=True)
        answer = published.math_answer(response)
        right = published.math_answer(example["solution"])
        return latex.is_equiv(answer, right, reference_compat=True)

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` of each response."""
        return self.start_checks(examples, responses)()

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Begins `check_batch`; symbolic comparisons run in worker processes meanwhile."""
        pairs = list(zip(examples, responses, strict=True))
        if self._reference_compat:
            scores = [float(self._check_as_published(*pair)) for pair in pairs]
            return lambda: scores
        compared = [(gold(example), answers.final_expression(text)) for example, text in pairs]
        if self._symbolic:
            results = symbolic.start(compared)
            return lambda: [float(same) for same in results()]
        scores = [float(latex.is_equiv(*each)) for each in compared]
        return lambda: scores


def gold(example: Example) -> str:
    """The right answer: the field `answer` if there is one, else the solution's last box.

    Raises:
        ValueError: if there is neither.
    """
    answer = _find_gold(example)
    if answer is None:
        raise ValueError(f"there is no right answer in {example['solution'][-60:]!r}")
    return answer


def _find_gold(example: Example) -> str | None:
    if "answer" in example:
        return example["answer"]
    found = [box.strip() for box in answers.boxes(example["solution"]) if box.strip()]
    return found[-1] if found else None


def _verify(example: Example) -> None:
    if "answer" in example:
        if not isinstance(example["answer"], str) or not example["answer"].strip():
            raise ValueError(f"field 'answer' must be text, found {example['answer']!r}")
    elif not answers.boxes(example["solution"]):
        raise ValueError(
            "field 'solution' has no \\boxed{...} and there is no field 'answer': "
            f"{example['solution'][-60:]!r}"
        )


def _open_all(path: pathlib.Path) -> Source:
    return files.open_table(path, ("problem", "solution"), verify=_verify)


def _open_answered(path: pathlib.Path) -> Source:
    source = _open_all(path)
    answered = [i for i in range(len(source)) if _find_gold(source[i]) is not None]
    return sources.Subset(source, np.array(answered, np.int64))
