"""Programs that are tested by what they print, or by calls, in a fenced block."""

import base64
import gzip
import json
import pickle
import zlib

import pytest

from jax_unmask.tasks import files, sandbox
from jax_unmask.tasks.programs import LiveCodeBench, PrimeIntellect

pytestmark = pytest.mark.usefixtures("needs_sandbox")
TWICE = {
    "question": "Twice a number.",
    "test_method": "stdio",
    "test_input": ["1\n", "2\n", "-3\n"],
    "test_output": ["2\n", "4", "-6\n"],
}
CALLED = {"question": "Twice.", "test_list": ["assert f(1) == 2", "assert f(2) == 4"]}


def fenced(program):
    return f"Let me see.\n```python\n{program}\n```\nThis prints it."


@pytest.mark.parametrize(
    ("program", "score", "share"),
    [
        ("print(2 * int(input()))", 1, 1),
        ("import sys\nfor x in sys.stdin.buffer:\n    print(' ', 2 * int(x), '\\n')", 1, 1),
        ("if __name__ == '__main__':\n    print(2 * int(input()))\n    exit()", 1, 1),
        ("x = int(input())\nprint(abs(2 * x))", 0, 2 / 3),
        ("print(2)", 0, 1 / 3),
        ("raise SystemExit(0)", 0, 0),
        ("import os\nos._exit(0)", 0, 0),
        ("print(2 * int(input())", 0, 0),
        ("def run_program(text): return text", 0, 0),
        ("import sys\nsys.modules['solution'].run_program = lambda text: '2'", 0, 0),
        ("", 0, 0),
    ],
)
def test_printed_answers(program, score, share):
    example = PrimeIntellect("unused").parse(TWICE)
    for partial, expected in ((False, score), (True, share)):
        task = PrimeIntellect("unused", partial=partial)
        assert task.check(example, fenced(program)) == pytest.approx(expected)
    assert PrimeIntellect("unused").check(example, program) == 0  # Not in a block.


def test_the_last_block_counts_and_a_prefix_opens_it():
    task = PrimeIntellect("unused")
    wrong, right = fenced("def f(x): return x"), fenced("def f(x): return 2 * x")
    example = task.parse(CALLED)
    assert task.check_batch([example] * 2, [wrong + right, right + wrong]) == [1, 0]
    opened = task.parse(CALLED | {"prefix": "def f(x):\n", "solution": "    return 2 * x"})
    assert task.prompt(opened)[-1]["content"] == "```python\ndef f(x):\n"
    assert task.check(opened, task.target(opened)) == 1


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def contest(**fields):
    public = [{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}]
    hidden = [{"input": "[]\n5", "output": "[5]", "testtype": "functional"}]
    return {
        "question_content": "Append.",
        "starter_code": "class Solution:\n    def add(self, x: List[int], y: int) -> List[int]:",
        "public_test_cases": json.dumps(public),
        "private_test_cases": packed(hidden),
        "metadata": '{"func_name": "add"}',
    } | fields


def test_livecodebench_calls_the_method_of_the_starter():
    task = LiveCodeBench("unused")
    example = task.parse(contest())
    right = f"{example['starter_code']}\n        return x + [y]"
    assert task.check_batch([example] * 2, [fenced(right), fenced(f"{right}[:0]")]) == [1, 0]
    assert example["starter_code"] in task.prompt(example)[0]["content"]
    printed = [{"input": "1\n2", "output": "3\n"}]
    printed = contest(starter_code="", public_test_cases=json.dumps(printed), private_test_cases="")
    example = task.parse(printed)
    assert task.check(example, fenced("print(int(input()) + int(input()))")) == 1


@pytest.mark.parametrize("pickled", ["bomb", "class", "memo", "list", "two", "cut", "nothing"])
def test_hidden_tests_that_are_more_than_a_text_are_refused(pickled, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "most_bytes", lambda compressed: 1000)
    text = pickle.dumps("[]")
    packed = {
        "bomb": lambda: pickle.dumps(json.dumps([0] * 1000)),
        "class": lambda: pickle.dumps(sandbox.Sandbox),
        "memo": lambda: text[:-1] + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f.",
        "list": lambda: pickle.dumps(["[]"]),
        "two": lambda: text[:-1] + text,
        "cut": lambda: text[:-1],
        "nothing": lambda: b"",
    }[pickled]()
    path = tmp_path / "test.jsonl"
    hidden = base64.b64encode(zlib.compress(packed)).decode()
    path.write_text(json.dumps(contest(private_test_cases=hidden)) + "\n")
    with pytest.raises(ValueError, match=r"test.jsonl, line 1: field 'private_test_cases' cannot"):
        LiveCodeBench(path).source("test")


def test_a_gzip_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "most_bytes", lambda compressed: 1000)
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(ValueError, match=r"train.jsonl.gz .* 1,000 bytes"):
        files.read_text(path)


def test_fields_of_another_kind_are_refused():
    for bad in ({"test_output": []}, {"test_output": ["2"]}, {"test_method": "call"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PrimeIntellect("unused").parse(TWICE | bad)
