"""Problems, prompts, answer checking and rewards. Tasks are text in, text out."""

import inspect
from typing import Any

from jax_unmask import notation
from jax_unmask.shipped import shipped_name
from jax_unmask.tasks.base import Example, Source, Split, Task
from jax_unmask.tasks.generated import GeneratedTask

__all__ = [
    "TASKS",
    "Example",
    "Source",
    "Split",
    "Task",
    "create",
    "example_prompt",
    "names",
    "parse",
    "posable",
    "settings",
    "shown_problem",
]

TASKS = notation.Names(
    "task",
    {
        "aime24": "competitions.Aime24",
        "aime25": "competitions.Aime25",
        "amc23": "competitions.Amc23",
        "arithmetic": "arithmetic.Arithmetic",
        "countdown": "countdown.Countdown",
        "gsm8k": "gsm8k.Gsm8k",
        "humaneval": "humaneval.HumanEval",
        "kodcode": "kodcode.KodCode",
        "leetcode": "leetcode.LeetCode",
        "livecodebench": "programs.LiveCodeBench",
        "math": "math.Math",
        "math500": "competitions.Math500",
        "mbpp": "mbpp.Mbpp",
        "mixture": "mixture.Mixture",
        "primeintellect": "programs.PrimeIntellect",
        "responses": "responses.GivenResponses",
        "sudoku": "sudoku.Sudoku",
        "sudoku_puzzles": "sudoku_puzzles.SudokuPuzzles",
        "word_problems": "word_problems.WordProblems",
    },
    package="jax_unmask.tasks",
)


def names() -> list[str]:
    """Short names of the tasks of the package."""
    return list(TASKS)


def posable() -> list[str]:
    """Names of tasks that pose problems of their own.

    A mixture is a way to train on several, and `responses` are data of one's own.
    """
    return [name for name in names() if name not in ("mixture", "responses")]


def example_prompt(model: str) -> str | None:
    """A prompt that a shipped model takes, which is one of its task; None for other models."""
    if (name := shipped_name(model)) is None:
        return None
    task = parse(name)
    prompt = task.prompt(task.source("test")[0])
    return prompt if isinstance(prompt, str) else None


def shown_problem(text: str, path: str | None = None) -> list[str]:
    """Arguments of `generate` for a problem worth seeing; files may have but the first.

    The first of sudoku has a single solution, which may take one forward.

    >>> shown_problem("sudoku"), shown_problem("gsm8k"), shown_problem("countdown:test.jsonl")
    (['--problem=3'], [], [])
    """
    spec = notation.parse(text)
    make = TASKS(spec.name)
    is_generated = isinstance(make, type) and issubclass(make, GeneratedTask)
    return ["--problem=3"] if is_generated and not (spec.target or path) else []


def settings(name: str) -> dict[str, inspect.Parameter]:
    """The settings of a task with their types (`annotation`) and defaults.

    Args:
        name: a short name, or an import path (`package.module.Name`).
    """
    return notation.parameters(TASKS(name))


def create(name: str, **settings: Any) -> Task:
    """Makes a task.

    Args:
        name: a short name, or an import path (`package.module.Name`).
        **settings: the task's own arguments, such as `path` for gsm8k.

    Raises:
        ValueError: there is no such task or setting, or a setting that it needs is missing.
    """
    make = TASKS(name)
    known = notation.parameters(make)
    for key in settings:
        if key not in known:
            problem = f"the task has no setting {key!r}{notation.suggestion(key, known)}"
            raise notation.NotationError(name, problem)
    for key, parameter in known.items():
        if key not in settings and parameter.default is parameter.empty:
            raise notation.NotationError(name, f"the task needs a value for {key}")
    return make(**settings)


def parse(text: str, path: str | None = None) -> Task:
    """Makes a task from NAME, NAME:SETTING=VALUE,... or NAME:PATH,SETTING=VALUE,...

    Args:
        text: the task.
        path: its data, where the text does not give them.

    Raises:
        ValueError: as of `create`; or the text cannot be read.
    """
    spec = notation.parse(text)
    kinds = {key: each.annotation for key, each in settings(spec.name).items()}
    path = spec.target or path
    return create(spec.name, **({"path": path} if path else {}) | spec.arguments(kinds))
