"""Programming problems with tests by standard input and output, or by calls of a function."""

import base64
import json
import pickletools
import re
import zlib
from collections.abc import Sequence
from typing import Any

from jax_unmask.tasks import code, files, prompts, sandbox
from jax_unmask.tasks.base import Example, Split

_TRACERL = {
    "stdio": "This is the problem:\n{question}\nYou should put your code in ```python ```. Use "
    "input() to read input and print() to produce output in your script.",
    "function": "{question}\nPlace your code within a single Python code block ```python ```. Do "
    "not include more than one code block.",
}
_QUESTION = (
    "### Question:\n{question_content}\n\n### Format: {format}\n```python\n{starter}\n```\n\n"
)
_ANSWER = "### Answer: (use the provided format with backticks)\n\n"
_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose "
    "your code within delimiters."
)
_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when "
    "the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
# Defines a function that runs the program on a text, in its own process as every program.
_RUNNER = """
import io, sys
def run_program(text):
    before = sys.stdin, sys.stdout
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    sys.stdout = io.TextIOWrapper(io.BytesIO(), write_through=True)
    names = {{"__name__": "__main__", "exit": sys.exit, "quit": sys.exit}}
    try:
        exec(compile({source!r}, "<program>", "exec"), names)
    except SystemExit:
        pass
    finally:
        written = sys.stdout
        sys.stdin, sys.stdout = before
    return written.buffer.getvalue().decode(errors="replace")
"""
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


def last_block(response: str) -> str:
    r"""The code in the last fenced block of a response; nothing if there is none.

    >>> last_block("First:\n```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```\nDone.")
    'x = 2\n'
    """
    found = _BLOCK.findall(response)
    return found[-1] if found else ""


def by_output(program: str, cases: Sequence[tuple[str, str]]) -> sandbox.Job:
    """A program with tests that compare the words it prints for an input.

    Args:
        program: what the response holds.
        cases: an input and the expected output each.
    """
    tests = (f"assert run_program({given!r}).split() == {out.split()!r}" for given, out in cases)
    return sandbox.Job(_RUNNER.format(source=program), tuple(tests))


class PrimeIntellect(code.CodeTask):
    """Problems in the format of TraceRL's code sets (arXiv 2509.06949), such as PrimeIntellect's.

    An example has a `question` and a `test_method`: with "stdio" lists `test_input` and
    `test_output`, with "function" a `test_list` of assertions and maybe a `prefix`, with which the
    program begins. It may have a `solution`. The program is the last fenced block of a response.
    """

    name = "primeintellect"
    fields = ("question",)
    hub = "Gen-Verse/PrimeIntellect"

    def parse(self, example: Example) -> Example:
        """Refuses examples without tests."""
        method = example.get("test_method", "stdio" if "test_input" in example else "function")
        if method not in _TRACERL:
            raise ValueError(f"field 'test_method' must be one of {list(_TRACERL)}, not {method!r}")
        names = ("test_input", "test_output") if method == "stdio" else ("test_list",)
        lists = [example.get(name) for name in names]
        if (
            not all(isinstance(each, list) and each for each in lists)
            or len({len(each) for each in lists if isinstance(each, list)}) > 1
        ):
            raise ValueError(f"fields {list(names)} must be lists of tests, as long as each other")
        return example | {"test_method": method}

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt; a prefix opens the response."""
        request = _TRACERL[example["test_method"]].format(question=example["question"])
        prefix = example.get("prefix") or ""
        return prompts.turns(request, code.OPEN_FENCE + prefix if prefix else "")

    def target(self, example: Example) -> str:
        """The data set's solution in a fence, if it has one."""
        prefix = example.get("prefix") or ""
        solution = example.get("solution") or ""
        return f"{'' if prefix else code.OPEN_FENCE}{solution}\n{code.FENCE}" if solution else ""

    def job(self, example: Example, response: str) -> sandbox.Job:
        """The last fenced block, and the problem's tests."""
        prefix = example.get("prefix") or ""
        program = last_block(code.OPEN_FENCE + prefix + response if prefix else response)
        if example["test_method"] == "stdio":
            pairs = zip(example["test_input"], example["test_output"], strict=True)
            return by_output(program, [(str(given), str(out)) for given, out in pairs])
        return sandbox.Job(program, tuple(example["test_list"]))

    def _stems(self, split: Split) -> Sequence[str]:
        own = {"train": "PrimeIntellect.*", "test": "LiveCodeBench|LiveBench|.*_test"}
        return (*super()._stems(split), *([own[split]] if split in own else []))


class LiveCodeBench(code.CodeTask):
    """LiveCodeBench (Jain et al., arXiv 2403.07974): a test set in test.jsonl, test2.jsonl, ...

    Problems with a `starter_code` are tested by calls of a method of class `Solution`, the others
    by standard input and output; with the public and the private tests.
    """

    name = "livecodebench"
    fields = ("question_content", "starter_code", "public_test_cases")
    hub = "livecodebench/code_generation_lite"
    test_stem = r"test\d*"
    test_only = True

    def parse(self, example: Example) -> Example:
        """The record with its tests as `cases`; refuses those without."""
        hidden = example.get("private_test_cases") or "[]"
        for name in ("public_test_cases", "metadata"):
            try:
                json.loads(example.get(name) or "{}")
            except ValueError as error:
                raise ValueError(f"field {name!r} is not valid JSON ({error})") from error
        cases = [*json.loads(example["public_test_cases"]), *_unpacked(hidden)]
        if not cases or not all(isinstance(each, dict) and "output" in each for each in cases):
            raise ValueError("field 'public_test_cases' must list tests, each with its output")
        kept = {name: value for name, value in example.items() if not name.endswith("test_cases")}
        return kept | {"cases": json.dumps(cases)}

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt."""
        starter = example["starter_code"]
        asked = {"format": _STARTER, "starter": starter} if starter else None
        asked = asked or {"format": _STDIN, "starter": "# YOUR CODE HERE"}
        question = example["question_content"]
        return prompts.turns(_QUESTION.format(question_content=question, **asked) + _ANSWER)

    def target(self, example: Example) -> str:
        """The field `solution`, which the published set has not, in a fence."""
        solution = example.get("solution") or ""
        return f"{code.OPEN_FENCE}{solution}\n{code.FENCE}" if solution else ""

    def job(self, example: Example, response: str) -> sandbox.Job:
        """The last fenced block, and the problem's tests."""
        program, cases = last_block(response), json.loads(example["cases"])
        if not example["starter_code"]:
            return by_output(program, [(each["input"], each["output"]) for each in cases])
        name = json.loads(example.get("metadata") or "{}").get("func_name", "")
        name = name or re.findall(r"def (\w+)\(self", example["starter_code"])[-1]
        tests = (
            f"given = [json.loads(line) for line in {each['input']!r}.splitlines() if line]\n"
            f"assert Solution().{name}(*given) == json.loads({each['output']!r})"
            for each in cases
        )
        return sandbox.Job(
            f"from typing import *\n{program}", tuple(tests), "import json", exports=("Solution",)
        )


def _unpacked(tests: str) -> Any:
    """Private tests: JSON, or JSON pickled, compressed and in base64."""
    try:
        return json.loads(tests)
    except ValueError:
        pass
    try:
        packed = base64.b64decode(tests)
        most = files.most_bytes(len(packed))
        reader = zlib.decompressobj()
        pickled = reader.decompress(packed, most)
        if not reader.eof:
            raise ValueError(f"it is cut off, or unpacks to more than {most:,} bytes")
        return json.loads(_pickled_text(pickled))
    except (ValueError, TypeError, zlib.error) as error:
        raise ValueError(f"field 'private_test_cases' cannot be read ({error})") from error


def _pickled_text(pickled: bytes) -> str:
    """The text that a pickle holds. It is never loaded: a pickle is a program."""
    texts = []
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"):
            texts.append(argument)
        elif operation.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "PUT", "STOP"):
            raise ValueError(f"the pickle is more than a text: {operation.name}")
    (text,) = texts
    return str(text)
