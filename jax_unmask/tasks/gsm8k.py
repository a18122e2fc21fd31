"""GSM8K: grade-school mathematics in words (Cobbe et al., arXiv 2110.14168)."""

from __future__ import annotations

import math
import os
import pathlib
import re
from collections.abc import Sequence

from jax_unmask.tasks import files, prompts, sources
from jax_unmask.tasks.base import Example, Source, Split
from jax_unmask.tasks.checkers import answers, published

_FIELDS = ("question", "answer")
_CALCULATION = re.compile(r"<<[^<>]*>>")
_TOLERANCE = 1e-6


class Gsm8k:
    """GSM8K. An example has a `question` and an `answer`, a solution that ends in `#### NUMBER`.

    The validation split is every 15th problem of the training file (499 of 7,473); the training
    split is the rest (6,974), the test split the test file (1,319).

    Args:
        path: a directory with `train.jsonl` and `test.jsonl` (plain or gzipped), or one such file.
            None reads through TensorFlow Datasets instead.
        data_dir: where TensorFlow Datasets has `gsm8k` prepared; None is its own default.
        prompt_style: "training" asks for reasoning and answer tags; "evaluation" asks for a box
            too, and opens the response with `<reasoning>`.
        reference_compat: score as the published code does, faults included: first box, numbers cut
            at a comma, and under prompt_style="evaluation" no negative right answers (two of the
            1,319 test problems can then never be solved).

    Raises:
        ValueError: for an unknown prompt style, or both `path` and `data_dir`.
    """

    name = "gsm8k"

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        prompt_style: prompts.PromptStyle = "training",
        reference_compat: bool = False,
    ) -> None:
        prompts.check_style(prompt_style)
        if path is not None and data_dir is not None:
            raise ValueError(
                f"path={os.fspath(path)!r} (JSON Lines) and data_dir={os.fspath(data_dir)!r} "
                "(TensorFlow Datasets) exclude each other; give one of them"
            )
        self._path = path
        self._data_dir = data_dir
        self._style = prompt_style
        self._reference_compat = reference_compat

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split, in the order of the files; the seed plays no part."""
        del seed
        if self._path is not None:
            return sources.local_split(self._path, split, _open_file)
        return _tfds_split(split, self._data_dir)

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt; see `jax_unmask.tasks.prompts` for the opened response."""
        return prompts.gsm8k_messages(example["question"], self._style)

    def target(self, example: Example) -> str:
        """The data set's solution in the format that the prompt asks for, without calculations."""
        solution, _, answer = example["answer"].partition("####")
        reasoning = _CALCULATION.sub("", solution).strip()
        return prompts.worked_response(reasoning, answer.strip(), self._style)

    def check(self, example: Example, response: str) -> float:
        """1 if the response's final number is the right one, to 1e-6, else 0."""
        if not self._reference_compat:
            return float(_close(answers.final_number(response), gold(example)))
        answer = published.gsm8k_answer(response)
        if self._style == "evaluation":
            right = published.gsm8k_gold_for_evaluation(example["answer"])
            return float(answer is not None and answer == right)
        return float(_close(answer, _published_gold(example)))

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` of each response."""
        return [
            self.check(example, response)
            for example, response in zip(examples, responses, strict=True)
        ]


def gold(example: Example) -> float:
    """The right answer: the number after the last `####` of the solution.

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


def _open_file(path: pathlib.Path) -> Source:
    return files.open_table(path, _FIELDS, verify=gold)


def _tfds_split(split: Split, data_dir: str | os.PathLike[str] | None) -> Source:
    sources.check_split(split)
    stored = "test" if split == "test" else "train"
    source = sources.TfdsSource("gsm8k", stored, data_dir, fields=_FIELDS)
    return source if split == "test" else sources.hold_out(source, split)
