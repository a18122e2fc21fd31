"""The interface of judges."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from jax_unmask.tasks.base import Example


@dataclasses.dataclass(frozen=True)
class Solution:
    """A response in chunks.

    Attributes:
        example: the problem.
        question: its prompt as text.
        answer: the right answer as text, for judges that compare with it.
        chunks: the response, cut into parts; joined they are the response.
        right: whether the task's checker accepts the whole.
    """

    example: Example
    question: str
    answer: str
    chunks: tuple[str, ...]
    right: bool

    @property
    def outcome(self) -> float:
        """1 if the whole is right, else -1."""
        return 1.0 if self.right else -1.0


class Judge(Protocol):
    """Scores each chunk of a solution."""

    def judge(self, solutions: Sequence[Solution]) -> list[list[float]]:
        """Scores in [-1, 1], one for each chunk of each solution."""
        ...
