"""GSM8K: grade-school mathematics in words (Cobbe et al., arXiv 2110.14168)."""

import dataclasses
import math
import os
import re

from jax_unmask.settings import setting
from jax_unmask.tasks import files, prompts, tfds
from jax_unmask.tasks.base import Example, Source, Split
from jax_unmask.tasks.checkers import answers, published
from jax_unmask.tasks.from_files import FileTask

_CALCULATION = re.compile(r"<<[^<>]*>>")
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Gsm8k(FileTask):
    """GSM8K. An example has a `question` and an `answer`, a solution that ends in `#### NUMBER`.

    There are 7,473 training problems (see `hold_out`) and 1,319 test problems.

    The faults of `reference_compat`: the first box counts, numbers end at a comma, and under
    prompt_style="evaluation" there are no negative right answers (two of the 1,319 test problems
    can then never be solved).

    Attributes:
        path: as of `FileTask`. None reads through TensorFlow Datasets, which prepares the published
            data set by itself; where that is not installed, the published files.
        data_dir: where TensorFlow Datasets prepares `gsm8k`; None is its own default.

    Raises:
        ValueError: for both `path` and `data_dir`.
    """

    name = "gsm8k"
    fields = ("question", "answer")
    hub = tfds.GSM8K
    folders = ("main",)

    _: dataclasses.KW_ONLY
    data_dir: files.Path | None = None
    prompt_style: prompts.PromptStyle = setting("training", prompts.PROMPT_STYLES)
    reference_compat: bool = setting(False, "Scores as the published code does, faults included.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.data_dir is not None:
            raise ValueError(
                f"path={os.fspath(self.path)!r} (JSON Lines) and "
                f"data_dir={os.fspath(self.data_dir)!r} (TensorFlow Datasets) exclude each other; "
                "give one of them"
            )

    def _load(self, split: Split) -> Source:
        is_elsewhere = split == "test" and self.test_path is not None
        if self.path is None and split != "validation" and not is_elsewhere:
            try:
                return tfds.read_gsm8k(split, self.data_dir)
            except ImportError:
                if self.data_dir is not None:
                    raise
        return super()._load(split)

    def parse(self, example: Example) -> Example:
        """Refuses examples without a right answer."""
        gold(example)
        return example

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt; see `jax_unmask.tasks.prompts` for the opened response."""
        return prompts.messages(example["question"], self.prompt_style, "gsm8k")

    def target(self, example: Example) -> str:
        """The data set's solution in the format that the prompt asks for, without calculations."""
        solution, _, answer = example["answer"].partition("####")
        reasoning = _CALCULATION.sub("", solution).strip()
        return prompts.worked_response(reasoning, answer.strip(), self.prompt_style)

    def render(self, example: Example, response: str | None = None) -> str:
        """The question alone, and the response with the number that is read from it."""
        question = example["question"].strip()
        if response is None:
            return question
        answer, right = answers.final_number(response), gold(example)
        read = "none" if answer is None else f"{answer:g}"
        return f"{question}\n\n{response.strip()}\n\nanswer: {read}; right: {right:g}"

    def check(self, example: Example, response: str) -> float:
        """1 if the response's final number is the right one, to 1e-6, else 0."""
        if not self.reference_compat:
            return float(_close(answers.final_number(response), gold(example)))
        answer = published.gsm8k_answer(response)
        if self.prompt_style == "evaluation":
            read = published.gsm8k_gold_for_evaluation(example["answer"])
            return float(answer is not None and answer == read)
        right = published.gsm8k_gold(example["answer"])
        return float(answer is not None and abs(answer - right) < _TOLERANCE)


def gold(example: Example) -> float:
    """The right answer: the number after the last `####` of the solution.

    >>> gold({"answer": "She pays 3 * 500 = 1,500 dollars. #### 1,500"})
    1500.0

    Raises:
        ValueError: if there is none.
    """
    _, mark, text = example["answer"].rpartition("####")
    value = answers.number(text.strip()) if mark else None
    if value is None:
        raise ValueError(
            f"field 'answer' must end in '#### NUMBER', found {example['answer'][-60:]!r}"
        )
    return value


def _close(answer: float | None, right: float) -> bool:
    return answer is not None and math.isclose(answer, right, rel_tol=1e-9, abs_tol=_TOLERANCE)
