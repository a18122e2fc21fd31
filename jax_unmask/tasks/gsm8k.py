"""GSM8K: grade-school mathematics in words (Cobbe et al., arXiv 2110.14168)."""

from __future__ import annotations

import dataclasses
import math
import os
import re

from jax_unmask.settings import setting
from jax_unmask.tasks import files, prompts, sources, tfds
from jax_unmask.tasks.base import Example, Source, Split
from jax_unmask.tasks.checkers import answers, published
from jax_unmask.tasks.from_files import FileTask

_CALCULATION = re.compile(r"<<[^<>]*>>")
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Gsm8k(FileTask):
    """GSM8K. An example has a `question` and an `answer`, a solution that ends in `#### NUMBER`.

    The validation split is every 15th problem of the training file (499 of 7,473); the training
    split is the rest (6,974), the test split the test file (1,319).

    The faults of `reference_compat`: the first box counts, numbers end at a comma, and under
    prompt_style="evaluation" there are no negative right answers (two of the 1,319 test problems
    can then never be solved).

    Attributes:
        path: as of `FileTask`; None reads through TensorFlow Datasets instead.
        data_dir: where TensorFlow Datasets has `gsm8k` prepared; None is its own default.

    Raises:
        ValueError: for both `path` and `data_dir`.
    """

    name = "gsm8k"
    fields = ("question", "answer")

    path: files.Path | None = None  # type: ignore[assignment]
    _: dataclasses.KW_ONLY
    data_dir: files.Path | None = None
    prompt_style: prompts.PromptStyle = setting(
        "training", "Whether a box is asked for too, and the response is opened (evaluation)."
    )
    reference_compat: bool = setting(False, "Scores as the published code does, faults included.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.data_dir is not None:
            raise ValueError(
                f"path={os.fspath(self.path)!r} (JSON Lines) and "
                f"data_dir={os.fspath(self.data_dir)!r} (TensorFlow Datasets) exclude each other; "
                "give one of them"
            )

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split, in the order of the files, whatever the seed."""
        if self.path is not None:
            return super().source(split, seed=seed)
        sources.check_split(split)
        if split == "test":
            return tfds.read_gsm8k("test", self.data_dir)
        return self._in_band(sources.hold_out(tfds.read_gsm8k("train", self.data_dir), split))

    def parse(self, example: Example) -> Example:
        """Refuses examples without a right answer."""
        gold(example)
        return example

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt; see `jax_unmask.tasks.prompts` for the opened response."""
        return prompts.gsm8k_messages(example["question"], self.prompt_style)

    def target(self, example: Example) -> str:
        """The data set's solution in the format that the prompt asks for, without calculations."""
        solution, _, answer = example["answer"].partition("####")
        reasoning = _CALCULATION.sub("", solution).strip()
        return prompts.worked_response(reasoning, answer.strip(), self.prompt_style)

    def check(self, example: Example, response: str) -> float:
        """1 if the response's final number is the right one, to 1e-6, else 0."""
        if not self.reference_compat:
            return float(_close(answers.final_number(response), gold(example)))
        answer = published.gsm8k_answer(response)
        if self.prompt_style == "evaluation":
            right = published.gsm8k_gold_for_evaluation(example["answer"])
            return float(answer is not None and answer == right)
        return float(_close(answer, _published_gold(example)))


def gold(example: Example) -> float:
    """The right answer: the number after the last `####` of the solution.

    >>> gold({"answer": "She pays 3 * 500 = 1,500 dollars. #### 1,500"})
    1500.0

    Raises:
        ValueError: if there is none.
    """
    _, mark, text = example["answer"].rpartition("####")
    value = answers.number(text.strip(), which="first") if mark else None
    if value is None:
        raise ValueError(
            f"field 'answer' must end in '#### NUMBER', found {example['answer'][-60:]!r}"
        )
    return value


def _published_gold(example: Example) -> float:
    text = published.gsm8k_gold(example["answer"])
    if text is None:
        raise ValueError(f"field 'answer' has no '####': {example['answer'][-60:]!r}")
    return published.gsm8k_number(text)


def _close(answer: float | None, right: float) -> bool:
    return answer is not None and math.isfinite(answer) and abs(answer - right) < _TOLERANCE
