"""Sources made of other sources, and the names of splits."""

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import get_args

from jax_unmask.tasks.base import Example, Source, Split


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some examples of a source, in the given order."""

    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.indices[index]]


def select(source: Source, keep: Callable[[Example], bool]) -> Subset:
    """The examples of a source for which `keep` is true."""
    return Subset(source, [k for k in range(len(source)) if keep(source[k])])


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A source over and over, up to a length."""

    source: Source
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        return self.source[int(index) % len(self.source)]


class Concatenation:
    """Sources one after the other, each example tagged with the name of the source it is from.

    Args:
        sources: sources by name.
        tag: field that takes the name.
    """

    def __init__(self, sources: Mapping[str, Source], tag: str) -> None:
        self._names = list(sources)
        self._sources = list(sources.values())
        self._ends = list(accumulate(len(source) for source in self._sources))
        self._tag = tag

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0..{len(self) - 1}")
        which = bisect_right(self._ends, index)
        first = self._ends[which - 1] if which else 0
        return {**self._sources[which][index - first], self._tag: self._names[which]}


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is a `Split`."""
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is unknown; choose train, validation or test")


def hold_out(source: Source, split: Split, every: int) -> Subset:
    """The training or the validation split of a training set of which every n-th is held out.

    Args:
        source: the whole training set.
        split: "train" or "validation".
        every: n; 15 holds out 499 of GSM8K's 7,473 problems and 500 of MATH's 7,500.

    >>> hold_out([{"n": n} for n in range(40)], "validation", 15).indices
    [0, 15, 30]
    """
    held_out = split == "validation"
    indices = range(len(source))
    return Subset(source, [k for k in indices if (k % every == 0) == held_out])
