"""Problems and responses as people read them."""

import pytest

from jax_unmask import tasks
from jax_unmask.tasks.base import drawing, rendered
from jax_unmask.tasks.mixture import TAG, Mixture
from jax_unmask.tasks.sudoku_puzzles import SudokuPuzzles

COUNTDOWN = {"numbers": [15, 44, 79], "target": 50, "steps": "", "prompt": "79,44,15:50="}


@pytest.mark.parametrize(
    ("settings", "response", "line"),
    [
        ("", "79-44+15", "79-44+15 = 50"),
        ("", "79/44", "79/44 = 79/44, of [44, 79]"),
        ("", "79-", "79-: no expression"),
        (":style=chat", "Well. <answer>79+15-44</answer>", "79+15-44 = 50"),
        (":style=equations", "79-44=35,35+15=50", "79-44=35\n35+15=50"),
    ],
)
def test_countdown(settings, response, line):
    task = tasks.parse(f"countdown{settings}")
    assert task.render(COUNTDOWN) == "make 50 from 15, 44, 79"
    assert drawing(task, COUNTDOWN, response) == line


@pytest.mark.parametrize("name", ["arithmetic", "word_problems"])
def test_each_step_is_marked(name):
    task = tasks.parse(name)
    example = task.source("test")[0]
    right = task.target(example)
    assert {line[0] for line in drawing(task, example, right).splitlines()} <= {"✓", " "}
    wrong = right.rpartition("#### ")[0] + "#### 99"
    assert drawing(task, example, wrong).splitlines()[-1] == "✗ #### 99"
    assert rendered(task, example, right).startswith(example["prompt"].strip())


def test_mathematics_shows_the_answer_that_is_read():
    example = {"question": "Two and two?", "answer": "#### 4"}
    gsm8k = rendered(tasks.parse("gsm8k"), example, "It is <answer>5</answer>")
    assert gsm8k == "Two and two?\n\nIt is <answer>5</answer>\n\nanswer: 5; right: 4"
    example = {"problem": "2+2?", "solution": r"\boxed{4}"}
    mathematics = drawing(tasks.parse("math"), example, r"\boxed{5}")
    assert mathematics.endswith("answer: 5; right: 4")


def test_code_shows_the_program_that_is_run():
    mbpp = tasks.parse("mbpp")
    example = {"text": "Add.", "code": "def add(a, b): return a + b", "test_list": ["assert True"]}
    assert drawing(mbpp, example, "def add(a, b):\n    return b\n```\nDone.").endswith("return b")
    assert mbpp.render(example).endswith("assert True")
    head = {"prompt": "def add(a, b):", "entry_point": "add", "test": "", "task_id": "0"}
    program = "def add(a, b):\n    return 1"
    assert drawing(tasks.parse("humaneval"), head, "    return 1") == program


def test_sudoku_of_files_and_mixtures_are_drawn():
    puzzle = "1234341..1434.2."
    example = {"prompt": f"{puzzle}=", TAG: "sudoku"}
    chat = SudokuPuzzles(path="nowhere.jsonl", style="chat")
    shown = chat.render(example, "<answer>1234 3412 2143 4321</answer>")
    assert shown.splitlines()[0] == "1 2 | 3 4     1 2 | 3 4"
    both = Mixture({"sudoku": tasks.parse("sudoku")})
    assert both.render(example) == chat.render(example)


def test_without_a_drawing_there_are_the_texts():
    task = tasks.parse("responses:chat=true", "nowhere.jsonl")
    example = {"prompt": "Hello", "response": "Hi", "step_map": None}
    assert rendered(task, example, "Hi") == "user: Hello\n\nHi"
    assert drawing(task, example, "Hi") == ""
