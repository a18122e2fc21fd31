import pathlib

import pytest

from jax_unmask.tasks.humaneval import HumanEval
from jax_unmask.tasks.kodcode import KodCode
from jax_unmask.tasks.mbpp import Mbpp

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples"


def test_humaneval_prompt_opens_the_function():
    task = HumanEval(SAMPLES / "humaneval")
    example = task.source("test")[1]
    user, opened = task.prompt(example)
    assert user["content"] == (
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        f"```python\n{example['prompt']}\n```\n"
    )
    head = f"Here is the completed function:\n```python\n{example['prompt']}\n"
    assert opened == {"role": "assistant", "content": head}


def test_mbpp_prompt_has_three_shots():
    task = Mbpp(SAMPLES / "mbpp")
    example = task.source("test")[0]
    user, opened = task.prompt(example)
    shots = user["content"].split("\n\n")
    assert len(shots) == 4
    assert shots[0] == (
        "You are an expert Python programmer, and here is your task:\nWrite a function to twice a "
        "number.\nYour code should pass these tests:\nassert twice(2) == 4\nassert twice(-2) == -4"
        "\nassert isinstance(twice(1), int)\n```python\ndef twice(x):\n\treturn 2 * x\n```"
    )
    assert shots[3].endswith("assert isinstance(twice(1), int)")
    assert opened["content"] == "\n```python\n"


@pytest.mark.parametrize(
    ("split", "ids"), [("test", [11, 12]), ("validation", [511, 512]), ("train", [601, 602])]
)
def test_mbpp_splits_are_by_task_id(split, ids):
    source = Mbpp(SAMPLES / "mbpp").source(split)
    assert [source[k]["task_id"] for k in range(len(source))] == ids


def test_kodcode_prompt_opens_the_declaration():
    task = KodCode(SAMPLES / "kodcode")
    source = task.source("test")
    user, opened = task.prompt(source[0])
    assert user["content"] == (
        "You are an expert Python programmer, and here is your task:\n\nWrite a function that adds "
        "0.\n\nImplement the function exactly as specified below."
    )
    head = "Here is the completed function:\n\n```python\n"
    assert opened["content"] == head + "def add(x):\n"
    assert task.prompt(source[1])[1]["content"] == head


@pytest.mark.usefixtures("needs_sandbox")
@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("    return max(words, key=len)\n```\nThis is right.", 1),
        ("    return max(words, key=len)", 1),
        ("    return words[0]\n```", 0),
        ("    return max(words, key=len", 0),
        ("```", 0),
        ("", 0),
        ("    raise SystemExit(0)", 0),
        ("    pass\n\ndef check(f): pass\n", 0),
        ("Sure! Here it is.", 0),
        # The whole function, within a fence of its own, with notes around it.
        ("```python\n{whole}```\nThat is all.", 1),
        ("\n```python3\n{whole}\n```", 1),
        ("Here it is:\n\n```py title=x\n{whole}```\n```\nlongest(['a'])\n```", 1),
        ("{whole}", 1),
        ("```\n\nHere it is:\n```python\n{whole}```", 1),
        ("~~~python\n{whole}~~~\nThat is all.", 1),
        ('    """Use:\n    ```\n    f()\n    ```\n    """\n    return max(words, key=len)\n```', 1),
        ("    fence = '```'\n    return max(words, key=len)  # Fine.```", 1),
    ],
)
def test_responses_to_humaneval(response, score):
    task = HumanEval(SAMPLES / "humaneval")
    example = task.source("test")[1]
    head = next(line for line in example["prompt"].splitlines() if line.startswith("def "))
    whole = f"{head}\n    return max(words, key=len)\n"
    assert task.check(example, response.replace("{whole}", whole)) == score


@pytest.mark.usefixtures("needs_sandbox")
def test_kodcode_takes_the_body_or_the_whole_function():
    task = KodCode(SAMPLES / "kodcode")
    example = task.source("test")[0]
    for response in ("    return x + 0\n```", "```python\ndef add(x):\n    return x + 0\n```"):
        assert task.check(example, response) == 1


@pytest.mark.usefixtures("needs_sandbox")
def test_the_share_of_tests_passed():
    task = Mbpp(SAMPLES / "mbpp", partial=True)
    example = task.source("test")[0]
    for response, score in (("def twice(x): return abs(2 * x)", 2 / 3), ("twice = 3", 0), ("", 0)):
        assert task.check(example, response) == pytest.approx(score)


def test_bad_files(tmp_path):
    file = tmp_path / "mbpp.jsonl"
    for line, message in (
        ('{"code": "x"}', "field 'text'"),
        ('{"code": "x", "text": "y", "task_id": "1"}', "field 'task_id' must be a number"),
        ('{"code": "x", "text": "y", "task_id": 1, "test_list": []}', "field 'test_list' must be"),
        ('{"text": "y"}', "field 'code' is missing"),
        (
            '{"code": "x =", "text": "y", "task_id": 1, "test_list": ["assert x"]}',
            "field 'code' is no Python program",
        ),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=f"line 1: {message}"):
            Mbpp(file).source("test")
    file.write_text('{"question": "x", "solution": "y"}')
    with pytest.raises(ValueError, match=r"field 'test'"):
        KodCode(file).source("train")
    file.write_text('{"question": "x", "solution": "y", "test": "", "test_info": [{"x": 1}]}')
    with pytest.raises(ValueError, match="field 'test_info' must give function_name and"):
        KodCode(file).source("train")
    with pytest.raises(FileNotFoundError, match=r"HumanEval\.jsonl"):
        HumanEval(tmp_path).source("test")
