"""Public test sets of Sudoku 4x4, for shipped models and for chat models."""

from __future__ import annotations

import os
import re
from typing import Literal, get_args

from jax_unmask.tasks import files, prompts
from jax_unmask.tasks.base import Example, Source
from jax_unmask.tasks.checkers import answers
from jax_unmask.tasks.from_files import FileTask
from jax_unmask.tasks.sudoku import CELLS, Sudoku, grids

Style = Literal["plain", "chat"]

_REQUEST = """
Please solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character string \
reading left-to-right, top-to-bottom, where '0' represents empty cells.

Rules:
- Fill empty cells with digits 1-4
- Each row must contain digits 1-4 exactly once
- Each column must contain digits 1-4 exactly once
- Each 2x2 box must contain digits 1-4 exactly once

Important: Your solution must be a COMPLETE 16-character string with only the digits 1-4, \
representing your final solved grid.

Respond in this exact format:
<reasoning>
Your step-by-step solving process
</reasoning>
<answer>
[16-character solution string with no spaces or separators]
</answer>


Solve the following Sudoku puzzle: {puzzle}
"""


class SudokuPuzzles(FileTask):
    """Sudoku 4x4 puzzles of a file: `Puzzle` and `Solution` (d1), or `input` and `output` (Dream).

    Holes are zeros; Dream's grids have line ends between the rows. Many of d1's puzzles have more
    than one solution (124 of 500): every right one counts.

    Args:
        path: the file, or a directory with `4x4_test_sudoku.jsonl`.
        style: "plain": prompt and response as of task `sudoku`, for the denoiser that ships.
            "chat": d1's prompt.
        reference_compat: with style "chat", d1's published reward: the fraction of the holes that
            are filled as in the listed solution; givens are not looked at.

    Raises:
        ValueError: for an unknown style.
    """

    name = "sudoku_puzzles"
    fields = ()
    test_stem = "4x4_test_sudoku"
    test_only = True
    vocabulary = Sudoku.vocabulary

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        style: Style = "plain",
        reference_compat: bool = False,
    ) -> None:
        super().__init__(path)
        if style not in get_args(Style):
            raise ValueError(f"style={style!r} is unknown; choose one of {get_args(Style)}")
        if reference_compat and style != "chat":
            raise ValueError(f"reference_compat=True needs style='chat', not {style!r}")
        self._form = style
        self._reference_compat = reference_compat
        self._rules = Sudoku()

    def verify(self, example: Example) -> None:
        """Refuses what is no puzzle with a right solution."""
        puzzle, solution = _fields(example)
        if not re.fullmatch(f"[0-4]{{{CELLS}}}", puzzle):
            raise ValueError(f"field 'Puzzle' ('input') must be 16 digits 0 to 4, found {puzzle!r}")
        if self._rules.check({"prompt": _plain(puzzle)}, solution) != 1.0:
            raise ValueError(f"field 'Solution' ('output') {solution!r} does not solve {puzzle!r}")

    def prompt(self, example: Example) -> str | prompts.Messages:
        """The puzzle, as text or as d1's message."""
        puzzle = _fields(example)[0]
        if self._form == "plain":
            return _plain(puzzle)
        return [{"role": "user", "content": _REQUEST.format(puzzle=puzzle)}]

    def target(self, example: Example) -> str:
        """The listed solution."""
        solution = _fields(example)[1]
        if self._form == "plain":
            return solution
        rows = [solution[k : k + 4] for k in range(0, CELLS, 4)]
        return prompts.worked_response("\n".join(rows), solution, "training")

    def check(self, example: Example, response: str) -> float:
        """1 if the response's grid keeps the givens and obeys the rules, else 0."""
        puzzle, solution = _fields(example)
        if self._reference_compat:
            return _published_reward(response, puzzle, solution)
        grid = response
        if self._form == "chat":
            found = answers.tagged(response) or ""
            boxed = answers.boxes(found)
            grid = re.sub(r"[\s|,]", "", boxed[-1] if boxed else found)
        return self._rules.check({"prompt": _plain(puzzle)}, grid)

    def solutions(self, example: Example) -> int:
        """Number of right grids."""
        puzzle = _fields(example)[0]
        kept = [k for k in range(CELLS) if puzzle[k] != "0"]
        givens = [int(puzzle[k]) for k in kept]
        return int((grids()[:, kept] == givens).all(axis=1).sum())

    def _open(self, path: os.PathLike[str]) -> Source:
        return files.open_table(files.local(path), self.fields, verify=self.verify)


def _fields(example: Example) -> tuple[str, str]:
    """Puzzle and solution, 16 characters each."""
    for puzzle, solution in (("Puzzle", "Solution"), ("input", "output")):
        if isinstance(example.get(puzzle), str) and isinstance(example.get(solution), str):
            return example[puzzle].replace("\n", ""), example[solution].replace("\n", "")
    raise ValueError(
        f"fields 'Puzzle' and 'Solution', or 'input' and 'output', must be text; found "
        f"{sorted(example)}"
    )


def _plain(puzzle: str) -> str:
    return puzzle.replace("0", ".") + "="


def _published_reward(response: str, puzzle: str, solution: str) -> float:
    matches = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    if not matches:
        return 0.0
    digits = "".join(c for c in matches[-1] if c in "0123456789")
    grid = digits[:CELLS].ljust(CELLS, "0")
    holes = [k for k in range(CELLS) if puzzle[k] == "0"]
    if not holes:
        return 0.0
    return sum(grid[k] == solution[k] for k in holes) / len(holes)
