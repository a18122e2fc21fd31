"""Generated word problems: stories without loose ends, authors, canvases, steps that are checked.

That targets are right, splits share no prompt and the tokenizer writes all texts is tested with the
other generated tasks.
"""

import itertools
import json
import re

import pytest

from jax_unmask.tasks.judges import Solution, StepJudge
from jax_unmask.tasks.word_problems import AUTHORS, WordProblems, length


def problems(count=60, branching=1.0, **settings):
    source = WordProblems(branching=branching, **settings).source("train", seed=1)
    return [source[k] for k in range(count)]


def alone(author):
    return {name: float(name == author) for name in AUTHORS}


@pytest.mark.parametrize("canvas", [96, 128, 256])
def test_every_author_keeps_to_the_canvas(canvas):
    found = problems(300, canvas=canvas, correcting=1.0)
    lengths = {a: [length(p["solution"]) for p in found if p["author"] == a] for a in AUTHORS}
    assert all(lengths.values())
    assert max(map(max, lengths.values())) <= canvas
    assert max(length(p["prompt"]) for p in found) <= 128
    means = [sum(each) / len(each) for each in lengths.values()]
    assert max(means) > 2 * min(means)


def test_a_story_that_is_too_long_is_drawn_again():
    """It would end a training after an hour or a day."""
    source = WordProblems(branching=1, min_steps=8, story=113).source("train", seed=1)
    assert length(source[9976]["prompt"]) == 113
    source = WordProblems(branching=1, min_steps=8).source("train", seed=1)
    assert length(source[9976]["prompt"]) <= 112


def test_a_larger_canvas_lets_the_talkative_finish():
    short, long = (problems(20, canvas=canvas, **alone("careful")) for canvas in (96, 256))
    assert [p["prompt"] for p in short] == [p["prompt"] for p in long]
    assert max(length(p["solution"]) for p in long) > 128


@pytest.mark.parametrize("author", AUTHORS)
def test_the_steps_of_every_author_are_right(author):
    task = WordProblems(canvas=256, **alone(author))
    for example in problems(20, canvas=256, **alone(author)):
        assert example["author"] == author
        steps = task.check_steps(example, example["solution"])
        assert len(steps) > sum(1 for each in json.loads(example["story"]) if each[1])
        mended = example["solution"].count("let us look at that")
        assert sum(not step.right for step in steps) == mended, example
        assert author == "correcting" or not mended


def test_a_mistake_is_found_and_mended():
    for example in problems(20, canvas=256, **alone("correcting")):
        first, *others = example["solution"].split(" let us look at that.")
        for wrong, mended in zip([first, *others], others, strict=False):
            claim, check = re.findall(r"[^.]*\.", wrong)[-2:]
            right = re.findall(r"[^.]*\.", mended)[0]
            left, result = re.fullmatch(r".* (\d+ . \d+) = (\d+) [a-z]+\.", claim).groups()
            assert f" {left} = " in right and f"= {result} " not in right
            undone = re.fullmatch(r" check: (\d+) . \d+ = (\d+)\.", check).groups()
            assert undone[0] == result and undone[1] != left.split()[0]


@pytest.mark.parametrize("largest", [20, 99])
def test_a_story_has_no_loose_ends_and_keeps_to_its_numbers(largest):
    for example in problems(100, largest=largest):
        story, asked = json.loads(example["story"]), example["asked"]
        assert 3 <= sum(1 for _, sign, *_ in story if sign) <= 8
        used = {left for _, sign, left, *_ in story if sign}
        used |= {right for _, sign, _, right, is_index, _ in story if sign and is_index}
        assert used | {asked} == set(range(len(story)))
        numbers = map(int, re.findall(r"\d+", example["prompt"] + example["solution"]))
        assert max(numbers) <= largest


@pytest.mark.parametrize(
    ("branching", "fewest", "most"), [(0.0, 60, 60), (0.3, 15, 50), (1.0, 0, 14)]
)
def test_the_less_branching_the_more_stories_are_chains(branching, fewest, most):
    """In a chain each step starts from the last result, with a number that the story states."""
    stories = [json.loads(each["story"]) for each in problems(60, branching=branching)]
    chains = [
        all(left == k and not is_index for k, (_, _, left, _, is_index, _) in enumerate(story[1:]))
        for story in stories
    ]
    assert fewest <= sum(chains) <= most
    assert {sum(1 for _, sign, *_ in story if sign) for story in stories} == set(range(3, 9))


STORY = {
    "story": json.dumps(
        [
            ["Mia", "", 7, 0, False, "Mia has 7 pens"],
            ["Tom", "+", 0, 4, False, "Tom has 4 more pens than Mia"],
            ["Mia", "+", 0, 2, False, "Mia then buys 2 pens"],
            ["", "-", 1, 2, True, ""],
        ]
    ),
    "asked": 3,
    "answer": 2,
}


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (" 7 + 4 = 11. 7 + 2 = 9. 11 - 9 = 2. #### 2", [1, 1, 1, 1]),
        (" 7 + 2 = 9. 7 + 4 = 11. 11 - 9 = 2. #### 2", [1, 1, 1, 1]),
        (" 4 + 7 = 11. 7 + 2 = 9. 11 - 9 = 2. #### 2", [1, 1, 1, 1]),
        # A wrong result is wrong once; what follows from it is right.
        (" 7 + 4 = 12. 7 + 2 = 9. 12 - 9 = 3. #### 3", [0, 1, 1, 1]),
        (" 7 + 4 = 11. 7 + 2 = 9. 9 - 11 = 2. #### 2", [1, 1, 0, 0]),
        (" 7 + 4 = 11. 7 + 4 = 11. #### 11", [1, 0, 0]),
        (" 11 - 9 = 2. #### 2", [0, 0]),
        (" #### 2", [0]),
        (" Tom: 7 + 4 = 11. Tom: 7 + 2 = 9.", [1, 0]),
        (" Mia has 7 pens. Mia has 8 pens. Tom has 11 pens.", [1, 0, 0]),
        (" Tom has 4 more pens than Mia. so Tom has 7 + 4 = 11 pens. good.", [1, 1]),
        (" Tom has 5 more pens than Mia.", [0]),
        (" 7 + 4 = 11. check: 11 - 4 = 7. check: 12 - 4 = 8. check: 11 - 4 = 6.", [1, 1, 0, 0]),
        (" let us look at Tom. 7 + 4 =. 7 8. + = .", [0, 0]),
        (f" 7 + {'4' * 5000} = 11.", [0]),
        ("", []),
    ],
)
def test_steps(response, right):
    task = WordProblems()
    steps = task.check_steps(STORY, response)
    assert [step.right for step in steps] == [bool(each) for each in right]
    assert [response[step.end - 1] in ".0123456789" for step in steps] == [True] * len(right)
    solution = Solution(STORY, "", "", tuple(re.findall(r"[^.]*\.?", response)), False)
    judged = [score for score in StepJudge(task).judge([solution])[0] if score]
    assert judged == [1.0 if each else -1.0 for each in right]


def test_the_vocabulary_is_small_and_the_prompts_are_many():
    assert len(WordProblems.vocabulary) <= 200
    prompts = [p["prompt"] for p in problems(300)]
    assert len(set(prompts)) == len(prompts)
    assert all(a != b for a, b in itertools.pairwise(prompts))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_steps": 5, "max_steps": 4}, "min_steps=5"),
        ({"max_steps": 9}, "max_steps"),
        ({"canvas": 32}, "canvas"),
        ({"plain": -1.0}, "plain"),
        (dict.fromkeys(AUTHORS, 0.0), "weights"),
    ],
)
def test_bad_settings(settings, named):
    with pytest.raises(ValueError, match=named):
        WordProblems(**settings)
