"""Endless, reproducible problems whose splits share no prompt.

A generated task draws problem `index` of a split from a counter-based generator keyed by
(seed, index) and keeps it only if a hash of its *prompt* falls into the split's share. Two splits
can therefore never hold the same prompt, whatever the seeds and however many problems are drawn.
"""

import abc
import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jax_unmask.tasks.base import Example, Prompt, Source, Split, Task


@runtime_checkable
class ClosedVocabulary(Protocol):
    """A task whose texts are made of few tokens, so that a denoiser can start from nothing.

    Attributes:
        vocabulary: all tokens of its prompts and targets, for a word-level tokenizer.
    """

    vocabulary: tuple[str, ...]


# Shares of the 16 hash buckets of prompts.
_BUCKETS: dict[Split, range] = {"test": range(2), "validation": range(2, 3), "train": range(3, 16)}
_MAX_DRAWS = 10_000
_ANSWER = re.compile(r"####\s*(-?\d{1,9})\s*$")


def split_of(prompt: str) -> Split:
    """The only split in which a prompt may appear."""
    bucket = zlib.crc32(prompt.encode()) % 16
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


@dataclasses.dataclass(frozen=True)
class GeneratedSource:
    """Random access to 2**31 - 1 generated problems of one split.

    Attributes:
        draw: maps a NumPy generator to an example that has a "prompt" entry (text).
        split: which prompts to keep.
        seed: seed of the problem sequence, at least 0.

    Raises:
        ValueError: for an unknown split or a negative seed.
    """

    draw: Callable[[np.random.Generator], Example]
    split: Split
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in _BUCKETS:
            raise ValueError(f"split={self.split!r} is unknown; choose one of {sorted(_BUCKETS)}")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, index: int) -> Example:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, int(index)]))
        for _ in range(_MAX_DRAWS):
            example = self.draw(generator)
            if split_of(example["prompt"]) == self.split:
                return example
        raise RuntimeError(f"no problem of split {self.split!r} in {_MAX_DRAWS} draws")


def check_bounds(task: Any, name: str) -> None:
    """Raises ValueError if a task's setting `min_NAME` is over its `max_NAME`."""
    low, high = getattr(task, f"min_{name}"), getattr(task, f"max_{name}")
    if low > high:
        raise ValueError(f"min_{name}={low} is over max_{name}={high}")


class GeneratedTask(Task):
    """A task that draws its problems; an example has a "prompt" and a "solution", both text.

    A response is right when it ends in `#### ` and the example's "answer", a whole number, unless a
    task checks otherwise.
    """

    @abc.abstractmethod
    def draw(self, generator: np.random.Generator) -> Example:
        """A random problem."""

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """An endless stream of problems; no prompt occurs in two splits."""
        return GeneratedSource(self.draw, split, seed)

    def prompt(self, example: Example) -> Prompt:
        """The problem as text."""
        return example["prompt"]

    def target(self, example: Example) -> str:
        """The solution that the problem was drawn with."""
        return example["solution"]

    def check(self, example: Example, response: str) -> float:
        """1.0 for a right response, else 0.0."""
        found = _ANSWER.search(response)
        return float(found is not None and int(found[1]) == example["answer"])
