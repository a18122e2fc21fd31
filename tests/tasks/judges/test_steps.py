"""Steps of arithmetic are verified one by one, each given those before it."""

import pytest

from jax_unmask.tasks.arithmetic import Arithmetic
from jax_unmask.tasks.judges import Solution, StepJudge
from jax_unmask.tasks.sudoku import Sudoku

EXAMPLE = {
    "prompt": " Ian has 7 coins, Mon triples, Tue loses 4, Wed finds 2?",
    "solution": "",
    "answer": 19,
}


def verdicts(response: str) -> list[bool]:
    return [step.right for step in Arithmetic().check_steps(EXAMPLE, response)]


def solution(*chunks: str) -> Solution:
    return Solution(EXAMPLE, EXAMPLE["prompt"], "19", chunks, right=False)


def test_every_step_of_every_written_solution_is_right():
    task, source = Arithmetic(), Arithmetic().source("train")
    for i in range(200):
        steps = task.check_steps(source[i], task.target(source[i]))
        assert len(steps) >= 2
        assert all(step.right for step in steps)
        assert steps[-1].end == len(task.target(source[i]))


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (" Mon 7 * 3 = 21. Tue - 4 = 17. Wed + 2 = 19. #### 19", [True] * 4),
        (" Mon 7 * 3 = 21 coins. so Tue Wed - 4 + 2 = 19. #### 19", [True] * 3),
        # A wrong total is held against its own line only; later ones go on from it.
        (" Mon 7 * 3 = 20. Tue - 4 = 16. Wed + 2 = 18. #### 18", [False, True, True, True]),
        # What the story does not say.
        (" Mon 7 * 2 = 14. Tue - 4 = 10. Wed + 2 = 12. #### 12", [False, True, True, True]),
        (" Tue 7 - 4 = 3.", [False]),
        (" Mon * 3 = 21.", [False]),
        (" Mon 7 * 3 = 21. Tue 21 - 4 = 17.", [True, False]),
        # Not done yet, or another number than the total.
        (" Mon 7 * 3 = 21. #### 21", [True, False]),
        (" Mon 7 * 3 = 21. Tue - 4 = 17. Wed + 2 = 19. #### 18", [True, True, True, False]),
        (" Mon Mon = = 3 coins coins. so. ####", [False, False]),
        ("", []),
        (" Mon 7 * 3", []),
        (f" Mon 7 * 3 = {'2' * 5000}. #### {'1' * 5000}", [False, False]),
    ],
)
def test_steps(response, right):
    assert verdicts(response) == right


def test_a_chunk_is_worth_what_the_steps_are_that_end_in_it():
    judge = StepJudge(Arithmetic())
    parts = solution(" Mon 7 *", " 3 = 21. Tue - 4", " = 16. Wed + 2 = 18.", " ", "#### 18")
    empty = solution()
    assert judge.judge([parts, empty]) == [[0.0, 1.0, -1.0, 0.0, 1.0], []]


def test_a_task_without_verifiable_steps_is_refused():
    with pytest.raises(ValueError, match=r"task 'sudoku' .*check_steps"):
        StepJudge(Sudoku())
