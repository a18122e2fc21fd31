"""Many-solution Sudoku 4x4: every valid completion of a partly filled grid is right.

Given the prompt, the cells of the response depend on each other, so filling several at once costs
accuracy even with a perfect denoiser: the task where the choice of positions matters most.
"""

import dataclasses
import functools
import itertools

import numpy as np

from jax_unmask.settings import check_ranges, setting
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.generated import GeneratedTask, check_bounds

CELLS = 16
_EMPTY = "."


_INDICES = np.arange(CELLS).reshape(4, 4)
_BOXES = _INDICES.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
UNITS = np.concatenate([_INDICES, _INDICES.T, _BOXES])
"""Cell indices of the 12 units (rows, columns, boxes): int [12, 4]."""


@functools.cache
def grids() -> np.ndarray:
    """All 288 valid grids, digits 1 to 4, in ascending order: int8 [288, 16]."""
    rows = np.array(list(itertools.permutations((1, 2, 3, 4))), np.int8)
    found = rows[np.indices([len(rows)] * 4).reshape(4, -1).T].reshape(-1, CELLS)
    return found[is_valid(found)]


def is_valid(grids: np.ndarray) -> np.ndarray:
    """Whether full grids (int [..., 16], digits 1 to 4) obey all rows, columns and boxes."""
    return (np.sort(grids[..., UNITS]) == [1, 2, 3, 4]).all(axis=(-2, -1))


def solves(puzzle: str, grid: str) -> bool:
    """Whether a grid of 16 digits keeps the givens of a puzzle (dots are holes) and is valid.

    >>> solves("1.34341..1434.2.=", "1234341221434321"), solves("2" + 15 * ".", "1234341221434321")
    (True, False)
    """
    if len(grid) != CELLS or any(cell not in "1234" for cell in grid):
        return False
    if any(given not in (_EMPTY, cell) for given, cell in zip(puzzle, grid, strict=False)):
        return False
    return bool(is_valid(np.array([int(cell) for cell in grid])))


def drawn(*grids: str) -> str:
    """Grids of 16 cells side by side, as people draw them.

    >>> print(drawn("1.34341..1434.2."))
    1 . | 3 4
    3 4 | 1 .
    ----+----
    . 1 | 4 3
    4 . | 2 .
    """
    lines = []
    for row in range(4):
        cells = [list(f"{grid:{CELLS}.{CELLS}}"[4 * row : 4 * row + 4]) for grid in grids]
        lines.append("     ".join(f"{a} {b} | {c} {d}" for a, b, c, d in cells))
    lines.insert(2, "     ".join("----+----" for _ in grids))
    return "\n".join(line.rstrip() for line in lines)


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
        check_bounds(self, "holes")

    def check(self, example: Example, response: str) -> float:
        """1.0 if the response is 16 digits that complete the puzzle, else 0.0."""
        return float(solves(example["prompt"], response))

    def render(self, example: Example, response: str | None = None) -> str:
        """The puzzle, and beside it the response."""
        puzzle = example["prompt"]
        return drawn(puzzle) if response is None else drawn(puzzle, response)

    def draw(self, generator: np.random.Generator) -> Example:
        """A random valid grid with random holes."""
        solutions = grids()
        solution = solutions[generator.integers(len(solutions))]
        holes = generator.integers(self.min_holes, self.max_holes + 1)
        hidden = set(generator.permutation(CELLS)[:holes].tolist())
        cells = "".join(_EMPTY if k in hidden else str(solution[k]) for k in range(CELLS))
        return {"prompt": cells + "=", "solution": "".join(map(str, solution))}
