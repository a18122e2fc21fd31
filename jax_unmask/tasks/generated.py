"""Endless, reproducible problems whose splits share no prompt.

A generated task draws problem `index` of a split from a counter-based generator keyed by
(seed, index) and keeps it only if a hash of its *prompt* falls into the split's share. Two splits
can therefore never hold the same prompt, whatever the seeds and however many problems are drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from jax_unmask.tasks.base import Example, Split


@runtime_checkable
class ClosedVocabulary(Protocol):
    """A task whose texts are made of few tokens, so that a denoiser can start from nothing.

    Attributes:
        vocabulary: all tokens of its prompts and targets, for a word-level tokenizer.
    """

    vocabulary: tuple[str, ...]


# Shares of the 16 hash buckets of prompts.
_BUCKETS: dict[str, range] = {"test": range(2), "validation": range(2, 3), "train": range(3, 16)}
_MAX_DRAWS = 10_000


def split_of(prompt: str) -> Split:
    """The only split in which a prompt may appear."""
    bucket = zlib.crc32(prompt.encode()) % 16
    for split, buckets in _BUCKETS.items():
        if bucket in buckets:
            return split  # type: ignore[return-value]
    raise AssertionError(f"bucket {bucket} belongs to no split")


class GeneratedSource:
    """Random access to 2**31 - 1 generated problems of one split.

    Args:
        draw: maps a NumPy generator to an example that has a "prompt" entry (text).
        split: which prompts to keep.
        seed: seed of the problem sequence, at least 0.

    Raises:
        ValueError: for an unknown split or a negative seed.
    """

    def __init__(
        self, draw: Callable[[np.random.Generator], Example], split: Split, seed: int = 0
    ) -> None:
        if split not in _BUCKETS:
            raise ValueError(f"split={split!r} is unknown; choose one of {sorted(_BUCKETS)}")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self._draw = draw
        self._split = split
        self._seed = seed

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, index: int) -> Example:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, int(index)]))
        for _ in range(_MAX_DRAWS):
            example = self._draw(generator)
            if split_of(example["prompt"]) == self._split:
                return example
        raise RuntimeError(f"no problem of split {self._split!r} in {_MAX_DRAWS} draws")
