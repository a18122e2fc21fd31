"""Many-solution Sudoku 4x4: every valid completion of a partly filled grid is right.

Given the prompt, the cells of the response depend on each other, so filling several at once costs
accuracy even with a perfect denoiser: the task where the choice of positions matters most.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from jax_unmask.settings import check_ranges, setting
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.generated import GeneratedTask

CELLS = 16
_EMPTY = "."


def _units() -> np.ndarray:
    """Cell indices of the 12 units (rows, columns, boxes): int [12, 4]."""
    cells = np.arange(CELLS).reshape(4, 4)
    boxes = cells.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    return np.concatenate([cells, cells.T, boxes])


UNITS = _units()


@functools.cache
def grids() -> np.ndarray:
    """All 288 valid grids, digits 1 to 4, in ascending order: int8 [288, 16]."""
    rows = np.array(list(itertools.permutations((1, 2, 3, 4))), np.int8)
    # The first two and the last two rows must fill two boxes each: 96 pairs, not 576.
    pairs = _pairs(rows)
    boxes = np.sort(pairs.reshape(-1, 2, 2, 2).transpose(0, 2, 1, 3).reshape(-1, 2, 4))
    halves = pairs[(boxes == [1, 2, 3, 4]).all(axis=(1, 2))]
    found = _pairs(halves)
    return found[(np.sort(found[:, UNITS]) == [1, 2, 3, 4]).all(axis=(1, 2))]


def _pairs(parts: np.ndarray) -> np.ndarray:
    """Every row followed by every row: [n, k] to [n * n, 2 * k]."""
    first_and_second = np.indices((len(parts), len(parts))).reshape(2, -1).T
    return parts[first_and_second].reshape(-1, 2 * parts.shape[1])


def is_valid(grid: np.ndarray) -> bool:
    """Whether a full grid (int [16], digits 1 to 4) obeys all rows, columns and boxes."""
    return bool((np.sort(grid[UNITS], axis=1) == np.array([1, 2, 3, 4])).all())


def solves(puzzle: str, grid: str) -> bool:
    """Whether a grid of 16 digits keeps the givens of a puzzle (dots are holes) and is valid.

    >>> solves("1.34341..1434.2.=", "1234341221434321"), solves("2" + 15 * ".", "1234341221434321")
    (True, False)
    """
    if len(grid) != CELLS or any(cell not in "1234" for cell in grid):
        return False
    if any(given not in (_EMPTY, cell) for given, cell in zip(puzzle, grid, strict=False)):
        return False
    return is_valid(np.array([int(cell) for cell in grid]))


@dataclasses.dataclass(frozen=True)
class Sudoku(GeneratedTask):
    """Many-solution Sudoku 4x4 (`name = "sudoku"`).

    The prompt is the 16 cells, row by row, a dot for a hole, then `=`; the response is the 16
    digits of a full grid. A response is right when it keeps the givens and obeys the rules. The
    target is a uniform draw among the completions.
    """

    name = "sudoku"
    vocabulary = ("1", "2", "3", "4", _EMPTY, "=")

    min_holes: int = setting(8, "Fewest holes of a generated puzzle.", ge=1, le=CELLS)
    max_holes: int = setting(
        14, "Most holes; with 15 or 16 there are few different puzzles.", ge=1, le=CELLS
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_holes > self.max_holes:
            raise ValueError(f"min_holes={self.min_holes} is over max_holes={self.max_holes}")

    def check(self, example: Example, response: str) -> float:
        """1.0 if the response is 16 digits that complete the puzzle, else 0.0."""
        return float(solves(example["prompt"], response))

    def draw(self, generator: np.random.Generator) -> Example:
        """A random valid grid with random holes."""
        solutions = grids()
        solution = solutions[generator.integers(len(solutions))]
        holes = generator.integers(self.min_holes, self.max_holes + 1)
        hidden = set(generator.permutation(CELLS)[:holes].tolist())
        cells = "".join(_EMPTY if k in hidden else str(solution[k]) for k in range(CELLS))
        return {"prompt": cells + "=", "solution": "".join(map(str, solution))}
