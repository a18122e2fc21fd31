"""The embedded tasks: exact verifiers, endless fresh problems, splits that share no prompt."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unmask.denoisers import load_tokenizer, word_level
from jax_unmask.tasks import arithmetic, countdown, sudoku, word_problems
from jax_unmask.tasks.generated import GeneratedSource, split_of

TASKS = [
    sudoku.Sudoku(),
    arithmetic.Arithmetic(),
    countdown.Countdown(),
    word_problems.WordProblems(),
]
INDICES = st.integers(0, 2**31 - 2)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@settings(max_examples=30, deadline=None)
@given(index=INDICES, seed=st.integers(0, 1000))
def test_the_target_of_a_problem_is_right(task, index, seed):
    example = task.source("train", seed=seed)[index]
    assert task.check(example, task.target(example)) == 1.0
    assert example == task.source("train", seed=seed)[index]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_splits_share_no_prompt_whatever_the_seed(task):
    prompts = {
        split: {task.source(split, seed=seed)[k]["prompt"] for seed in (0, 5) for k in range(40)}
        for split in ("train", "validation", "test")
    }
    for one, other in itertools.combinations(prompts.values(), 2):
        assert not one & other
    for split, members in prompts.items():
        assert {split_of(prompt) for prompt in members} == {split}
        assert len(members) > 70  # Fresh problems, not a few repeated ones.


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_tokenizer_of_a_task_writes_its_texts_exactly(task, tmp_path):
    special = word_level.save_word_level(tmp_path, task.vocabulary)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.mask_id == special["mask"]
    source = task.source("test")
    for k in range(30):
        example = source[k]
        for text in (task.prompt(example), task.target(example)):
            ids = tokenizer.encode(text)
            assert tokenizer.decode([*ids, special["eos"], 7]) == text
            assert len(ids) <= len(text)


def test_a_number_is_one_token_where_the_vocabulary_has_it(tmp_path):
    word_level.save_word_level(tmp_path, (*"0123456789", "10", "105", "42", "+", " 42"))
    tokenizer = load_tokenizer(tmp_path)
    for text, pieces in (
        ("42+105", ["42", "+", "105"]),
        ("10+106", ["10", "+", "1", "0", "6"]),
        ("1042", ["1", "0", "4", "2"]),
        ("10 42", ["10", " 42"]),
    ):
        assert [tokenizer.decode([k]) for k in tokenizer.encode(text)] == pieces


def test_vocabularies_refuse_other_text_and_repeated_tokens(tmp_path):
    word_level.save_word_level(tmp_path, ("1", "2"))
    with pytest.raises(ValueError, match="'hello'.*" + re.escape(tmp_path.name)):
        load_tokenizer(tmp_path).encode("hello")
    with pytest.raises(ValueError, match="twice"):
        word_level.save_word_level(tmp_path, ("1", "1"))


def test_there_are_288_grids_in_ascending_order():
    assert sudoku.grids().shape == (288, 16)
    grids = [tuple(grid) for grid in sudoku.grids()]
    assert grids == sorted(set(grids))


@settings(max_examples=50, deadline=None)
@given(index=INDICES, cell=st.integers(0, 15), shift=st.integers(1, 3))
def test_one_wrong_cell_makes_a_grid_wrong(index, cell, shift):
    task = sudoku.Sudoku()
    example = task.source("test")[index]
    solution = list(task.target(example))
    solution[cell] = str((int(solution[cell]) - 1 + shift) % 4 + 1)
    assert task.check(example, "".join(solution)) == 0.0


def test_every_completion_is_right_and_no_other_grid():
    empty, right = "." * 16 + "=", "1234341221434321"
    assert sudoku.solves(empty, right) and not sudoku.solves("2" + empty[1:], right)
    for broken in ("", "1234", right + " ", right[:-1] + "5", "1" * 16):
        assert not sudoku.solves(empty, broken)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (" Mon 12 + 7 = 19. #### 19", True),
        ("#### 19", True),
        ("####19  ", True),
        (" #### 18. #### 19", True),
        (" #### 19. #### 18", False),
        (" 19", False),
        ("#### 19 pens", False),
        ("#### 190", False),
        ("####", False),
        (f"#### {'19' * 5000}", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("task", [arithmetic.Arithmetic(), word_problems.WordProblems()])
def test_only_the_number_after_the_last_marker_counts(task, response, right):
    assert task.check({"answer": 19}, response) == float(right)


def test_lengths_vary_for_one_and_the_same_question():
    write, steps = arithmetic.Arithmetic()._write, [("+", 7), ("-", 5), ("+", 2)]
    lengths = [len(write(np.random.default_rng(k), 12, steps, "pens")) for k in range(200)]
    assert max(lengths) > 2 * min(lengths)


def test_authors_of_arithmetic_write_as_much_as_they_are_asked_to():
    def solutions(**bounds):
        task = arithmetic.Arithmetic(**bounds)
        return [task.draw(np.random.default_rng(seed)) for seed in range(200)]

    for example in solutions(min_verbosity=1.0):
        assert example["solution"].count("=") == example["prompt"].count(",")
    assert not any(re.search("so|then", each["solution"]) for each in solutions(max_verbosity=0.0))
    with pytest.raises(ValueError, match=r"min_verbosity=0\.7 is over max_verbosity=0\.5"):
        arithmetic.Arithmetic(min_verbosity=0.7, max_verbosity=0.5)


@pytest.mark.parametrize("task", [sudoku.Sudoku, arithmetic.Arithmetic])
@pytest.mark.parametrize("bounds", [(0, 2), (3, 2), (2, 17)])
def test_impossible_sizes_are_refused(task, bounds):
    with pytest.raises(ValueError, match=r"holes|operations"):
        task(*bounds)


def test_sources_refuse_an_unknown_split_and_a_negative_seed():
    with pytest.raises(ValueError, match="'dev'"):
        sudoku.Sudoku().source("dev")
    with pytest.raises(ValueError, match="seed=-1"):
        GeneratedSource(lambda generator: {"prompt": ""}, "train", -1)
