"""Checks against public data sets, where they are at hand: they are not part of the repository."""

import gzip
import json
import os
import pathlib

import pytest

from jax_unmask.tasks import sudoku
from jax_unmask.tasks.countdown import Countdown
from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.math import Math, gold
from jax_unmask.tasks.sudoku_puzzles import SudokuPuzzles

BESIDE = pathlib.Path(__file__).parents[3] / "shared" / "data"
DATA = pathlib.Path(os.environ.get("JAX_UNMASK_DATA", BESIDE))


def data_set(*parts):
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; set JAX_UNMASK_DATA to the directory with the data sets")
    return path


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_scores_of_real_gsm8k_responses():
    rows = read(data_set("d1_generations", "gsm8k_instruct_256_128.jsonl.gz"))
    assert len(rows) == 1130
    test = Gsm8k(data_set("gsm8k")).source("test")
    by_question = {test[index]["question"]: test[index] for index in range(len(test))}
    examples = [by_question[row["question"]] for row in rows]
    responses = [row["generations"] for row in rows]
    published = Gsm8k("unused", reference_compat=True, prompt_style="evaluation")
    assert sum(published.check_batch(examples, responses)) == 863
    assert sum(Gsm8k("unused").check_batch(examples, responses)) == 876


@pytest.mark.parametrize(
    # Canvases of 256 and of 512 tokens. docs/checks/responses.md lists what only algebra accepts.
    ("file", "by_string", "by_value"),
    [("math500_instruct_256_128", 162, 178), ("math500_instruct_512_256", 181, 198)],
)
def test_scores_of_real_math_responses(file, by_string, by_value):
    rows = read(data_set("d1_generations", f"{file}.jsonl.gz"))
    examples = [{"problem": "", "solution": "", "answer": row["ground_truth"]} for row in rows]
    responses = [row["generations"] for row in rows]
    published = Math("unused", reference_compat=True, prompt_style="evaluation")
    assert sum(published.check_batch(examples, responses)) == by_string
    assert sum(Math("unused").check_batch(examples, responses)) == by_string
    assert sum(Math("unused", equivalence="symbolic").check_batch(examples, responses)) == by_value


def test_every_solution_of_countdown_and_sudoku_is_right():
    for folder, numbers, size in (
        ("countdown/countdown_cd3_test.jsonl", 3, 256),
        ("countdown_dream", 3, 1000),
        ("countdown_dream", 4, 1000),
        ("countdown_dream", 5, 1000),
    ):
        path = data_set(*folder.split("/"))
        for settings in ({}, {"style": "chat"}, {"style": "chat", "reference_compat": True}):
            check_all(Countdown(path, numbers=numbers, **settings), size)
    puzzles = sorted(data_set("sudoku4x4_dream").iterdir())
    for path, size in [(path, 108) for path in puzzles] + [(data_set("sudoku4x4"), 500)]:
        for settings in ({}, {"style": "chat"}, {"style": "chat", "reference_compat": True}):
            check_all(SudokuPuzzles(path, **settings), size)
    source = SudokuPuzzles(data_set("sudoku4x4")).source("test")
    grids = ["".join(map(str, grid)) for grid in sudoku.grids()]
    right = [sum(sudoku.solves(source[k]["prompt"], grid) for grid in grids) for k in range(500)]
    assert right.count(1) == 376


def check_all(task, size):
    source = task.source("test")
    examples = [source[index] for index in range(len(source))]
    assert len(examples) == size
    targets = [task.target(example) for example in examples]
    assert task.check_batch(examples, targets) == [1.0] * size
    assert sum(task.check_batch(examples, [""] * size)) == 0


@pytest.mark.parametrize(
    ("task", "folder", "sizes"),
    [
        (Gsm8k, "gsm8k", {"train": 7473, "test": 1319}),
        (Math, "math", {"train": 7498, "test": 5000}),
    ],
)
def test_every_solution_of_a_real_file_is_right(task, folder, sizes):
    task = task(data_set(folder))
    for split, size in sizes.items():
        source = task.source(split)
        examples = [source[index] for index in range(len(source))]
        assert len(examples) == size
        scores = task.check_batch(examples, [task.target(example) for example in examples])
        assert scores == [1.0] * size


def test_boxes_of_math500_hold_its_answers():
    source = Math(data_set("math"), test_file="math500").source("test")
    assert len(source) == 500
    checker = Math("unused")
    for index in range(500):
        example = source[index]
        assert checker.check(example, example["solution"]) == 1, gold(example)
