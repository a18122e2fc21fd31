"""MBPP: short Python problems with three tests each (Austin et al., arXiv 2108.07732)."""

import ast
import functools
import pathlib
from collections.abc import Sequence

from jax_unmask.tasks import code, prompts, sandbox, sources
from jax_unmask.tasks.base import Example, Source, Split

_QUESTION = (
    "You are an expert Python programmer, and here is your task:\n{text}\n"
    "Your code should pass these tests:\n{tests}"
)
_SHOTS = 3
_SHOWN_TESTS = 3
# Task ids of the published splits; the first ten are for prompts.
_SPLITS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
_PROMPT_IDS = range(1, 11)


class Mbpp(code.CodeTask):
    """MBPP: 974 problems, or its 427 best with path="sanitized-mbpp.jsonl" or the folder sanitized.

    The splits are the published ones, by task id: test 11 to 510, validation 511 to 600, train 601
    to 974. The prompt shows problems 2 to 4 with their solutions (1 to 3 in the full file).
    """

    name = "mbpp"
    fields = ("code",)
    hub = "google-research-datasets/mbpp"
    folders = ("full",)

    def _stems(self, split: Split) -> Sequence[str]:
        del split  # Published as one file, or as one for each split.
        return ("mbpp", "train|validation|test|prompt")

    def _check_single(self, file: pathlib.Path, split: Split) -> None:
        """A single file holds all splits."""

    def _load(self, split: Split) -> Source:
        return self._select(_SPLITS[split])

    def parse(self, example: Example) -> Example:
        """Refuses examples without a text, a task id or tests."""
        if not isinstance(example.get("text", example.get("prompt")), str):
            raise ValueError("field 'text' (sanitized: 'prompt') must be text")
        if not isinstance(example.get("task_id"), int):
            raise ValueError(f"field 'task_id' must be a number, found {example.get('task_id')!r}")
        tests = example.get("test_list")
        if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
            raise ValueError(f"field 'test_list' must be a list of tests, found {tests!r}")
        try:
            _defined(_code(example))
        except SyntaxError as error:
            raise ValueError(f"field 'code' is no Python program ({error})") from error
        return example

    def prompt(self, example: Example) -> prompts.Messages:
        """The published three-shot prompt in one turn, with the response's fence opened."""
        return prompts.turns(self._shots + _question(example), f"\n{code.OPEN_FENCE}")

    @functools.cached_property
    def _shots(self) -> str:
        shown = self._select(_PROMPT_IDS)
        return "".join(f"{_question(shown[k])}\n{_solution(shown[k])}\n\n" for k in range(_SHOTS))

    def problem(self, example: Example) -> str:
        """The problem without the ones that are shown with their solutions."""
        return _question(example)

    def target(self, example: Example) -> str:
        """The data set's solution, and the closing fence."""
        return f"{_code(example)}\n{code.FENCE}"

    def job(self, example: Example, response: str) -> sandbox.Job:
        """The response, and the problem's tests."""
        # Tests may use what the data set's solution imports.
        lines = [*_imports(_code(example)), *example.get("test_imports", [])]
        setup = "\n".join([*lines, example.get("test_setup_code", "")])
        return sandbox.Job(
            program=code.opened_code(response),
            tests=tuple(test.strip() for test in example["test_list"]),
            setup=setup.replace("\r", ""),
            # Some functions have the name of one of Python's own.
            exports=_defined(_code(example)),
        )

    def _select(self, ids: range) -> Source:
        source = super()._load("test")
        return sources.select(source, lambda example: example["task_id"] in ids)


def _question(example: Example) -> str:
    text = example.get("text", example.get("prompt"))
    tests = "\n".join(example["test_list"][:_SHOWN_TESTS])
    return _QUESTION.format(text=text, tests=tests)


def _code(example: Example) -> str:
    return example["code"].replace("\r", "")


def _solution(example: Example) -> str:
    return f"{code.OPEN_FENCE}{_code(example)}\n{code.FENCE}"


def _imports(source: str) -> list[str]:
    kinds = (ast.Import, ast.ImportFrom)
    return [ast.unparse(node) for node in ast.parse(source).body if isinstance(node, kinds)]


def _defined(source: str) -> tuple[str, ...]:
    """Names of the functions and classes that a solution defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return tuple(node.name for node in ast.parse(source).body if isinstance(node, kinds))
