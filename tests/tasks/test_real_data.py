"""Checks against public data sets, where they are at hand: they are not part of the repository."""

import gzip
import json
import os
import pathlib

import pytest

from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.math import Math, gold

ROOT = pathlib.Path(__file__).parents[2]
DATA = pathlib.Path(os.environ.get("JAX_UNMASK_DATA", ROOT.parent / "shared" / "data"))


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
    assert sum(Gsm8k("unused").check_batch(examples, responses)) >= 871


def test_scores_of_real_math_responses():
    rows = read(data_set("d1_generations", "math500_instruct_256_128.jsonl.gz"))
    examples = [{"problem": "", "solution": "", "answer": row["ground_truth"]} for row in rows]
    responses = [row["generations"] for row in rows]
    published = Math("unused", reference_compat=True, prompt_style="evaluation")
    ours = sum(Math("unused").check_batch(examples, responses))
    assert ours >= sum(published.check_batch(examples, responses)) >= 150


@pytest.mark.parametrize(
    ("task", "folder", "sizes"),
    [
        (Gsm8k, "gsm8k", {"train": 6974, "validation": 499, "test": 1319}),
        (Math, "math", {"train": 6998, "validation": 500, "test": 5000}),
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
