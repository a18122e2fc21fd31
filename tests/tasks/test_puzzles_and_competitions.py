import pathlib

import pytest

from jax_unmask.tasks.competitions import Aime24, Amc23, Math500
from jax_unmask.tasks.sudoku_puzzles import SudokuPuzzles

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples"
RECORD = {"Puzzle": "1034341001434020", "Solution": "1234341221434321"}


def test_puzzles_of_both_forms():
    task = SudokuPuzzles(SAMPLES / "sudoku")
    first, second = task.source("test")[0], task.source("test")[1]
    assert task.prompt(first) == "1.34341..1434.2.="
    assert task.prompt(second) == "." * 16 + "="
    assert task.check(second, "1234341221434321") == 1


@pytest.mark.parametrize(
    ("response", "score", "published"),
    [
        ("<answer>1234341221434321</answer>", 1, 1),
        ("<answer>\n1234\n3412\n2143\n4321\n</answer>", 1, 1),
        ("<answer>4234341221434321</answer>", 0, 1),
        ("<answer>1234341221434322</answer>", 0, 4 / 5),
        ("<answer>1234</answer>", 0, 1 / 5),
        ("1234341221434321", 0, 0),
        ("<answer></answer>", 0, 0),
    ],
)
def test_chat_and_the_published_reward(response, score, published):
    task = SudokuPuzzles("unused", style="chat")
    compat = SudokuPuzzles("unused", style="chat", reference_compat=True)
    puzzle = task.parse(RECORD)
    assert task.check(puzzle, response) == score
    assert compat.check(puzzle, response) == pytest.approx(published)


def test_answers_of_competitions_may_be_numbers():
    task = Aime24(SAMPLES / "competitions")
    assert [task.source("test")[k]["answer"] for k in range(2)] == ["24", "007"]
    assert task.check(task.source("test")[1], "\\boxed{7}") == 1
    assert Amc23(SAMPLES / "competitions").source("test")[0]["answer"] == "27"
    example = Math500(SAMPLES / "competitions").source("test")[0]
    assert task.check_batch([example] * 3, ["\\boxed{2/4}", "\\boxed{2}", ""]) == [1, 0, 0]


def test_bad_files(tmp_path):
    file = tmp_path / "aime24.jsonl"
    for line, message in (
        ('{"answer": "3"}', "field 'problem'"),
        ('{"problem": "x"}', "field 'answer' must be text"),
        ('{"problem": "x", "answer": " "}', "must not be blank"),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=f"line 1: .*{message}"):
            Aime24(tmp_path).source("test")
    file.write_text('{"Puzzle": "1", "Solution": "1"}')
    with pytest.raises(ValueError, match="must be 16 digits 0 to 4"):
        SudokuPuzzles(file).source("test")
    file.write_text('{"Puzzle": "1034341001434020", "Solution": "1234341221434322"}')
    with pytest.raises(ValueError, match=r"'Solution' .*'1234341221434322'.*'1034341001434020'"):
        SudokuPuzzles(file).source("test")
    file.write_text('{"puzzle": "1"}')
    with pytest.raises(ValueError, match="fields 'Puzzle' and 'Solution'"):
        SudokuPuzzles(file).source("test")
