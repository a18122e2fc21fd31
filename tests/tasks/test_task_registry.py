import pathlib

import pytest

from jax_unmask import tasks
from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.math import Math
from jax_unmask.tasks.mixture import Mixture

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples"
MIXED = {
    "gsm8k": Gsm8k(SAMPLES / "gsm8k", hold_out=15),
    "math": Math(SAMPLES / "math", hold_out=15),
}
SETTINGS = {
    **{n: {"path": SAMPLES / n, "hold_out": 15} for n in ("gsm8k", "kodcode", "leetcode", "math")},
    "mixture": {"tasks": MIXED},
    **{name: {"path": SAMPLES / name} for name in ("humaneval", "mbpp")},
    **{name: {"path": SAMPLES / "competitions"} for name in ("aime24", "aime25", "amc23")},
    "math500": {"path": SAMPLES / "competitions"},
    "sudoku_puzzles": {"path": SAMPLES / "sudoku"},
    "primeintellect": {"path": SAMPLES / "programs", "hold_out": 4},
    "responses": {"path": SAMPLES / "responses", "hold_out": 3},
    "livecodebench": {"path": SAMPLES / "programs"},
}
RUN_CODE = ("humaneval", "kodcode", "leetcode", "livecodebench", "mbpp", "primeintellect")
TEST_ONLY = ("aime24", "aime25", "amc23", "humaneval", "livecodebench", "math500", "sudoku_puzzles")


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_serves_every_split_and_knows_a_right_response(name, request):
    if name in RUN_CODE:
        request.getfixturevalue("needs_sandbox")
    task = tasks.create(name, **SETTINGS.get(name, {}))
    for split in ("test",) if name in TEST_ONLY else ("train", "validation", "test"):
        source = task.source(split, seed=1)
        for example in (source[0], source[1 % len(source)]):
            assert task.prompt(example)
            assert task.check(example, task.target(example)) == 1
            assert task.check(example, "") == 0
            assert task.check_batch([example, example], [task.target(example), ""]) == [1, 0]


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_test_set_has_no_other_split(name):
    with pytest.raises(ValueError, match=rf"split='train': task '{name}' "):
        tasks.create(name, **SETTINGS[name]).source("train")


def test_a_mixture_passes_each_example_to_its_own_task():
    mixture = Mixture(MIXED)
    assert mixture.name == "gsm8k_math"
    source = mixture.source("train")
    parts = list(MIXED.values())
    assert len(source) == sum(len(part.source("train")) for part in parts)
    first, last = source[0], source[len(source) - 1]
    for part, example, name in zip(parts, (first, last), MIXED, strict=True):
        assert example["task"] == name
        assert mixture.prompt(example) == part.prompt(example)
    right = [mixture.target(example) for example in (last, first)]
    assert mixture.check_batch([last, first, last], [right[0], "", right[0]]) == [1, 0, 1]


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"tasks={} "):
        Mixture({})
