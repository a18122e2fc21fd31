"""MATH: competition mathematics with LaTeX answers (Hendrycks et al., arXiv 2103.03874)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from jax_unmask.settings import setting, setting_of
from jax_unmask.tasks import files, prompts, sources
from jax_unmask.tasks.base import Example, SlowTask, Source, Split
from jax_unmask.tasks.checkers import answers, latex, published, symbolic
from jax_unmask.tasks.from_files import FileTask
from jax_unmask.tasks.gsm8k import Gsm8k

Equivalence = Literal["string", "symbolic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Math(SlowTask, FileTask):
    """MATH. An example has a `problem`, and a `solution` that boxes its answer or an `answer`.

    In the form of TraceRL's sets these are `question` and `ground_truth_answer`.

    There are 7,500 training problems (see `hold_out`) and 5,000 test problems (or the 500 of
    MATH-500, with test_file=math500). Problems whose solution has an empty box (two of the 7,500)
    have no right answer and are left out, except with `reference_compat`: then a response without a
    box is an answer as a whole, and two missing answers are the same.
    """

    name = "math"
    hub: ClassVar[str | None] = "EleutherAI/hendrycks_math"
    folders: ClassVar[tuple[str, ...]] = ("*",)  # One a subject.

    test_file: str | None = setting(
        None, "Name of the test file in the directory, without suffix, such as math500."
    )
    prompt_style: prompts.PromptStyle = setting_of(Gsm8k, "prompt_style")
    equivalence: Equivalence = setting(
        "string",
        "Answers are equal in their normal form, or in their value too (symbolic: math-verify).",
    )
    reference_compat: bool = setting_of(Gsm8k, "reference_compat")

    def parse(self, example: Example) -> Example:
        """Refuses examples without a problem, or without an answer and a box."""
        if "ground_truth_answer" in example:
            example = {"problem": example.get("question"), "solution": ""} | example
            answer = example["ground_truth_answer"]
            example["answer"] = answer if answer is None else str(answer)
        files.check_fields(example, ("problem", "solution"))
        if "answer" in example:
            if not isinstance(example["answer"], str) or not example["answer"].strip():
                raise ValueError(f"field 'answer' must be text, found {example['answer']!r}")
        elif not answers.boxes(example["solution"]):
            raise ValueError(
                "field 'solution' has no \\boxed{...} and there is no field 'answer': "
                f"{example['solution'][-60:]!r}"
            )
        return example

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt; see `jax_unmask.tasks.prompts` for the opened response."""
        return prompts.messages(example["problem"], self.prompt_style, "math")

    def target(self, example: Example) -> str:
        """The data set's solution in the format that the prompt asks for."""
        answer = gold(example)
        # Training's format asks for the answer in a box as well, which the solution holds.
        shown = f"\\boxed{{{answer}}}" if self.prompt_style == "training" else answer
        return prompts.worked_response(example["solution"].strip(), shown, self.prompt_style)

    def render(self, example: Example, response: str | None = None) -> str:
        """The problem alone, and the response with the answer that is read from it."""
        problem = example["problem"].strip()
        if response is None:
            return problem
        answer = answers.final_expression(response)
        right = _find_gold(example)
        return f"{problem}\n\n{response.strip()}\n\nanswer: {answer}; right: {right}"

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Starts `check_batch`; symbolic comparisons run in worker processes."""
        pairs = list(zip(examples, responses, strict=True))
        if self.reference_compat:
            scores = [float(self._check_as_published(*pair)) for pair in pairs]
            return lambda: scores
        compared = [(gold(example), answers.final_expression(text)) for example, text in pairs]
        if self.equivalence == "symbolic":
            results = symbolic.start(compared)
            return lambda: [float(same) for same in results()]
        scores = [float(latex.is_equiv(*each)) for each in compared]
        return lambda: scores

    def _check_as_published(self, example: Example, response: str) -> bool:
        if self.prompt_style == "evaluation":
            answer = published.math_answer_for_evaluation(response)
            right = example.get("answer", published.math_answer(example["solution"]))
            return answer is not None and latex.is_equiv(answer, right, reference_compat=True)
        answer = published.math_answer(response)
        right = published.math_answer(example["solution"])
        return latex.is_equiv(answer, right, reference_compat=True)

    def _stems(self, split: Split) -> Sequence[str]:
        own = self.test_file if split == "test" else None
        return super()._stems(split) if own is None else (own,)

    def _load(self, split: Split) -> Source:
        source = super()._load(split)
        if self.reference_compat:
            return source
        return sources.select(source, lambda example: _find_gold(example) is not None)


def gold(example: Example) -> str:
    r"""The right answer: the field `answer` if there is one, else the solution's last box.

    >>> gold({"solution": r"Half of $1$ is $\boxed{\frac{1}{2}}$."})
    '\\frac{1}{2}'

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
