"""Problems, prompts, answer checking and rewards. Tasks are text in, text out."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from jax_unmask.tasks.base import Example, Source, Split, Task

__all__ = [
    "Example",
    "Source",
    "Split",
    "Task",
    "create",
    "names",
    "posable",
    "register",
    "settings",
]

# Imported at first use, so that unused tasks cost nothing.
_TASKS = {
    "aime24": ("jax_unmask.tasks.competitions", "Aime24"),
    "aime25": ("jax_unmask.tasks.competitions", "Aime25"),
    "amc23": ("jax_unmask.tasks.competitions", "Amc23"),
    "arithmetic": ("jax_unmask.tasks.arithmetic", "Arithmetic"),
    "countdown": ("jax_unmask.tasks.countdown", "Countdown"),
    "gsm8k": ("jax_unmask.tasks.gsm8k", "Gsm8k"),
    "humaneval": ("jax_unmask.tasks.humaneval", "HumanEval"),
    "kodcode": ("jax_unmask.tasks.kodcode", "KodCode"),
    "leetcode": ("jax_unmask.tasks.leetcode", "LeetCode"),
    "math": ("jax_unmask.tasks.math", "Math"),
    "math500": ("jax_unmask.tasks.competitions", "Math500"),
    "mbpp": ("jax_unmask.tasks.mbpp", "Mbpp"),
    "mixture": ("jax_unmask.tasks.mixture", "Mixture"),
    "sudoku": ("jax_unmask.tasks.sudoku", "Sudoku"),
    "sudoku_puzzles": ("jax_unmask.tasks.sudoku_puzzles", "SudokuPuzzles"),
    "word_problems": ("jax_unmask.tasks.word_problems", "WordProblems"),
}


def register(name: str, module: str, attribute: str) -> None:
    """Registers a task from outside under a short name, within this process.

    Args:
        name: what `task.name` calls it.
        module: the module to import.
        attribute: its class there; keyword arguments are the task's settings.

    Raises:
        ValueError: there is another task of that name.
    """
    if _TASKS.get(name, (module, attribute)) != (module, attribute):
        raise ValueError(f"there is a task {name!r} already; choose another name")
    _TASKS[name] = (module, attribute)


def names() -> list[str]:
    """All short names of `create`."""
    return sorted(_TASKS)


def posable() -> list[str]:
    """Names of tasks that pose problems of their own; a mixture is a way to train on several."""
    return [name for name in names() if name != "mixture"]


def settings(name: str) -> dict[str, bool]:
    """The settings that a task of `names()` takes, and whether it cannot do without."""
    return {
        setting: parameter.default is parameter.empty
        for setting, parameter in _parameters(name).items()
    }


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    module, attribute = _TASKS[name]
    return inspect.signature(getattr(importlib.import_module(module), attribute)).parameters


def create(name: str, **settings: Any) -> Task:
    """Makes a task.

    Args:
        name: one of `names()`.
        **settings: the task's own arguments, such as `path` for gsm8k.

    Raises:
        ValueError: for an unknown name or setting.
    """
    if name not in _TASKS:
        close = difflib.get_close_matches(name, _TASKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"task name={name!r} is unknown; {hint}choose one of {names()}")
    module, attribute = _TASKS[name]
    make = getattr(importlib.import_module(module), attribute)
    accepted = list(_parameters(name))
    unknown = sorted(set(settings) - set(accepted))
    if unknown:
        raise ValueError(f"task {name!r} has no settings {unknown}; it takes {accepted}")
    return make(**settings)
