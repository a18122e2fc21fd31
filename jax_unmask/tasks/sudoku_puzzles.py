"""Public test sets of Sudoku 4x4, for shipped models and for chat models."""

import dataclasses
import re
from typing import Literal

from jax_unmask.settings import setting, setting_of
from jax_unmask.tasks import prompts
from jax_unmask.tasks.base import Example, Prompt
from jax_unmask.tasks.checkers import answers, published
from jax_unmask.tasks.countdown import Countdown
from jax_unmask.tasks.from_files import FileTask
from jax_unmask.tasks.sudoku import CELLS, Sudoku, drawn, solves

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SudokuPuzzles(FileTask):
    """Sudoku 4x4 puzzles of a file: `Puzzle` and `Solution` (d1), or `input` and `output` (Dream).

    Holes are zeros; Dream's grids have line ends between the rows. Many of d1's puzzles have more
    than one solution (124 of 500): every right one counts. Examples have a `puzzle` and a
    `solution` of 16 digits each, and the `prompt` of task `sudoku`.

    The published reward (`reference_compat`) is the fraction of the holes that are filled as in the
    listed solution, whatever the givens.
    """

    name = "sudoku_puzzles"
    test_stem = "4x4_test_sudoku"
    test_only = True
    vocabulary = Sudoku.vocabulary

    style: Style = setting(
        "plain", "Prompts as of task sudoku, for the shipped denoiser (plain), or d1's (chat)."
    )
    reference_compat: bool = setting_of(Countdown, "reference_compat")

    def __post_init__(self) -> None:
        super().__post_init__()
        published.check_style(self)

    def parse(self, example: Example) -> Example:
        """Puzzle and solution of a record; refuses what is no puzzle with a right solution."""
        for names in (("Puzzle", "Solution"), ("input", "output")):
            if all(isinstance(example.get(name), str) for name in names):
                puzzle, solution = (example[name].replace("\n", "") for name in names)
                break
        else:
            raise ValueError(
                "fields 'Puzzle' and 'Solution', or 'input' and 'output', must be text; found "
                f"{sorted(example)}"
            )
        if not re.fullmatch(f"[0-4]{{{CELLS}}}", puzzle):
            raise ValueError(f"field 'Puzzle' ('input') must be 16 digits 0 to 4, found {puzzle!r}")
        prompt = puzzle.replace("0", ".") + "="
        if not solves(prompt, solution):
            raise ValueError(f"field 'Solution' ('output') {solution!r} does not solve {puzzle!r}")
        return {"prompt": prompt, "puzzle": puzzle, "solution": solution}

    def prompt(self, example: Example) -> Prompt:
        """The puzzle, as text or as d1's message."""
        if self.style == "plain":
            return example["prompt"]
        return prompts.turns(_REQUEST.format(puzzle=example["puzzle"]))

    def target(self, example: Example) -> str:
        """The listed solution."""
        solution = example["solution"]
        if self.style == "plain":
            return solution
        rows = [solution[k : k + 4] for k in range(0, CELLS, 4)]
        return prompts.worked_response("\n".join(rows), solution, "training")

    def check(self, example: Example, response: str) -> float:
        """1 if the response's grid keeps the givens and obeys the rules, else 0."""
        if self.reference_compat:
            return _published_reward(response, example["puzzle"], example["solution"])
        return float(solves(example["prompt"], self._grid(response)))

    def render(self, example: Example, response: str | None = None) -> str:
        """The puzzle, and beside it the response's grid."""
        grids = [] if response is None else [self._grid(response)]
        return drawn(example["prompt"], *grids)

    def _grid(self, response: str) -> str:
        if self.style == "plain":
            return response
        return re.sub(r"[\s|,]", "", answers.final_expression(response) or "")


def _published_reward(response: str, puzzle: str, solution: str) -> float:
    digits = re.sub("[^0-9]", "", published.last_tagged(response) or "")
    grid = digits.ljust(CELLS, "0")
    holes = [k for k in range(CELLS) if puzzle[k] == "0"]
    return sum(grid[k] == solution[k] for k in holes) / max(len(holes), 1)
