"""Difficulty bands: the problems of a data set that are neither too easy nor too hard.

A field of the data set has a problem's difficulty: a level ("Level 3"), a word ("Easy"), or the
rate at which some model solves it (0.33).
"""

import dataclasses
import math
import re
from typing import Any

from jax_unmask import notation
from jax_unmask.tasks import sources
from jax_unmask.tasks.base import Example, Source

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_FORM = (
    "write field:low..high for numbers, such as level:3..5, or field:word|word, such as "
    "difficulty:Easy|Medium"
)


@dataclasses.dataclass(frozen=True)
class Band:
    """Problems whose field lies within bounds, or is one of some words.

    Attributes:
        field: the field.
        low: least number, inclusive.
        high: largest number, inclusive.
        words: words instead of bounds, in lower case.
    """

    field: str
    low: float = -math.inf
    high: float = math.inf
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Band":
        """Reads `level:3..5` or `difficulty:Easy|Medium`.

        >>> Band.parse("level:3..5").holds({"level": "Level 4"})
        True

        Raises:
            ValueError: it is neither.
        """
        try:
            spec = notation.parse(text)
            if not spec.target or spec.settings:
                raise ValueError("it is no band")
            bounds = notation.bounds(spec.target)
            words = () if bounds else notation.alternatives(spec.target)
        except ValueError as error:
            raise ValueError(f"difficulty={text!r}: {error}; {_FORM}") from error
        low, high = bounds or (-math.inf, math.inf)
        return cls(spec.name, low, high, tuple(word.lower() for word in words))

    def holds(self, example: Example) -> bool:
        """Whether an example is within the band.

        Raises:
            ValueError: the example has no such field.
        """
        if self.field not in example:
            raise ValueError(
                f"difficulty band over field {self.field!r}, which is missing; found "
                f"{sorted(example)}"
            )
        value: Any = example[self.field]
        if self.words:
            return str(value).strip().lower() in self.words
        found = _NUMBER.search(str(value))
        return found is not None and self.low <= float(found[0]) <= self.high

    def select(self, source: Source) -> Source:
        """The examples of a source that are within the band.

        Raises:
            ValueError: there are none, or an example has no such field.
        """
        chosen = sources.select(source, self.holds)
        if not chosen:
            raise ValueError(f"no example is within {self}; widen the difficulty band")
        return chosen
