import math
import pathlib
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_unmask.tasks.checkers import expressions
from jax_unmask.tasks.countdown import Countdown

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples" / "countdown"
EXAMPLE = {"prompt": "79,44,15:50=", "numbers": [15, 44, 79], "target": 50, "steps": ""}


@pytest.mark.parametrize("numbers", [3, 4, 5])
@pytest.mark.parametrize("style", ["expression", "equations", "chat"])
def test_generated_problems_are_solved(numbers, style):
    task = Countdown(numbers=numbers, style=style)
    source = task.source("train", seed=3)
    for index in range(30):
        example = source[index]
        assert len(example["numbers"]) == numbers
        assert task.check(example, task.target(example)) == 1
        texts = [task.prompt(example), task.target(example)]
        assert style == "chat" or set("".join(texts)) <= set(task.vocabulary)


def test_public_files_of_both_forms():
    source = Countdown(SAMPLES).source("test")
    assert source[0] == {**EXAMPLE, "steps": "44-15=29,79-29=50"}
    assert source[1]["numbers"] == [30, 100, 93] and source[1]["target"] == 23
    assert Countdown(SAMPLES, numbers=4).source("test")[0]["target"] == 24


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("44-15=29,79-29=50", 1),
        ("79+15=94,94-44=50", 1),
        ("44-15=29,79-29=51", 0),
        ("44-15=29", 0),
        ("79-29=50", 0),
        ("44-15=29,79-29=50,50*1=50", 0),
        ("44-15=30,79-29=50", 0),
        ("50=50", 0),
        ("", 0),
        ("44-15=29, 79-29=50", 0),
        ("1" * 5000 + "-1=50", 0),
    ],
)
def test_equations(response, score):
    assert Countdown(style="equations").check(EXAMPLE, response) == score


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("79-44+15", 1),
        ("(79+15)-44", 1),
        ("79-(44-15)", 1),
        ("-44+79+15", 1),
        ("79-44-15", 0),
        ("79-44+15+0", 0),
        ("79-44", 0),
        ("50", 0),
        ("79-44+15=50", 0),
        ("79-44+15)", 0),
        ("79/0-44+15", 0),
        ("", 0),
        ("79" * 500 + "-44+15", 0),
    ],
)
def test_expressions(response, score):
    assert Countdown().check(EXAMPLE, response) == score


@pytest.mark.parametrize(
    ("steps", "expression"),
    [
        ("44-15=29,79-29=50", "79-44+15"),
        ("79-44=35,35+15=50", "79-44+15"),
        ("79-44=35,15+35=50", "15+79-44"),
        ("2+4=6,5*6=30", "5*(2+4)"),
        ("8/4=2,6*2=12,12/3=4", "6*8/4/3"),
        ("50-20=30,30/30=1,6/1=6", "6/((50-20)/30)"),
        ("3*5=15,60/15=4", "60/(3*5)"),
        ("9-3=6,12/6=2", "12/(9-3)"),
        ("9-3=6,8-2=6,6+6=12", "9-3+8-2"),
    ],
)
def test_steps_as_one_expression(steps, expression):
    numbers = Counter(int(number) for number in re.findall(r"\d+", expression))
    target = int(steps.rpartition("=")[2])
    example = {"prompt": "", "numbers": [*numbers.elements()], "target": target, "steps": steps}
    assert Countdown().target(example) == expression
    assert Countdown().check(example, expression) == 1


def test_a_problem_has_one_prompt_however_its_numbers_are_ordered():
    first, second = (Countdown().source("train", seed=seed)[0]["prompt"] for seed in (0, 1))
    assert first != second
    for prompt in (first, second):
        numbers = [int(number) for number in prompt.partition(":")[0].split(",")]
        assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize(
    ("response", "score", "published"),
    [
        ("<answer>79-(44-15)</answer>", 1, 1),
        ("<answer>79-(44-15)=50</answer>", 1, 0.1),
        ("<answer>79-(44-15)=49</answer>", 0, 0.1),
        ("\\boxed{79 - (44 - 15)}", 1, 0),
        ("<answer>\\boxed{79 - 44 + 15}</answer>", 1, 0.1),
        ("<answer>79 - 44 \\times 15</answer>", 0, 0.1),
        ("<answer>79-44+15</answer> or <answer>1</answer>", 0, 0.1),
        ("<answer>50</answer>", 0, 0.1),
        ("79-(44-15)", 0, 0),
        ("<answer>79**44**15</answer>", 0, 0.1),
        ("<answer>79-(44-15</answer>", 0, 0.1),
        ("<answer>__import__('os').getpid()</answer>", 0, 0.1),
        ("<answer>79/(44-44)*15</answer>", 0, 0.1),
    ],
)
def test_expressions_and_the_published_reward(response, score, published):
    assert Countdown(style="chat").check(EXAMPLE, response) == score
    assert Countdown(style="chat", reference_compat=True).check(EXAMPLE, response) == published


@given(st.text(max_size=300))
def test_no_text_makes_evaluation_raise(text):
    expressions.evaluate(expressions.plain(text))
    expressions.evaluate_as_python(text)


def test_values_are_exact_and_bounded():
    assert expressions.evaluate("1/3*3") == 1
    assert expressions.evaluate("(" * 90 + "1" + ")" * 90) in (1, None)
    assert expressions.evaluate("2**3") is None and expressions.evaluate("7//2") is None
    assert expressions.evaluate_as_python("2**3") == 8
    assert expressions.evaluate_as_python("9**9**9") is None
    assert math.isclose(expressions.evaluate_as_python("1/3*3.5"), 3.5 / 3)
    assert expressions.evaluate_as_python("(3)(4)") is None


def test_bad_settings_and_files(tmp_path):
    for name, value in (("numbers", 6), ("style", "d1"), ("reference_compat", True)):
        with pytest.raises(ValueError, match=f"{name} ?= ?{value!r}"):
            Countdown(**{name: value})
    file = tmp_path / "cd3_test.jsonl"
    file.write_text('{"input": "1,2,x", "output": "3"}')
    with pytest.raises(ValueError, match=r"line 1: fields 'input' and 'output'.*found '1,2,x'"):
        Countdown(tmp_path).source("test")
    file.write_text('{"input": "1,2", "output": "3"}')
    with pytest.raises(ValueError, match="must hold 3 numbers"):
        Countdown(tmp_path).source("test")
