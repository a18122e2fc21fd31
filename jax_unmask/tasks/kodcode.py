"""KodCode: synthetic problems with tests in pytest's manner (Xu et al., arXiv 2503.02951)."""

import ast
import re
from typing import Any

from jax_unmask.tasks import code, prompts, sandbox
from jax_unmask.tasks.base import Example

_QUESTION = (
    "You are an expert Python programmer, and here is your task:\n\n{question}\n\n"
    "Implement the function exactly as specified below."
)
_DECLARED = ("function_name", "function_declaration")
_OPENED = "Here is the completed function:\n\n" + code.OPEN_FENCE


class KodCode(code.CodeTask):
    """Problems in KodCode's format: `question`, `solution`, `test` (or `test_code`), `test_info`.

    The prompt is the published one. Where `test_info` states the function's declaration, it opens
    the response, which is then the function's body and whatever else it needs.
    """

    name = "kodcode"
    fields = ("question", "solution")
    hub = "KodCode/KodCode-Light-RL-10K"

    def parse(self, example: Example) -> Example:
        """Refuses examples without tests."""
        if not isinstance(_tests(example), str):
            raise ValueError("field 'test' (or 'test_code') must be text")
        given = example.get("test_info") or [dict.fromkeys(_DECLARED, "")]
        info = given[0] if isinstance(given, list) and given else None
        if not isinstance(info, dict) or not all(isinstance(info.get(n), str) for n in _DECLARED):
            raise ValueError(
                f"field 'test_info' must give {' and '.join(_DECLARED)}, found {given!r:.200}"
            )
        return example

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt, with the response opened."""
        request = _QUESTION.format(question=example["question"])
        return prompts.turns(request, _OPENED + _declaration(example))

    def target(self, example: Example) -> str:
        """The solution's function without its head, what it needs, and the closing fence."""
        return f"{_after_declaration(example)}\n{code.FENCE}"

    def job(self, example: Example, response: str) -> sandbox.Job:
        """The response after the declaration, and the problem's test functions."""
        written, info = code.opened_code(response), _info(example)
        # A response may also state the whole function.
        whole = info and re.search(rf"^def {re.escape(info['function_name'])}\b", written, re.M)
        return sandbox.Job(
            program=written if whole else _declaration(example) + written,
            tests=(_tests(example),),
            functions=True,
        )


def _tests(example: Example) -> Any:
    return example.get("test", example.get("test_code"))


def _info(example: Example) -> dict[str, str] | None:
    info = example.get("test_info")
    return info[0] if info else None


def _declaration(example: Example) -> str:
    info = _info(example)
    return info["function_declaration"] + "\n" if info else ""


def _after_declaration(example: Example) -> str:
    """The solution such that it continues the declaration: body first, then all else."""
    info, source = _info(example), example["solution"]
    if info is None:
        return source
    lines = source.splitlines()
    try:
        parsed = ast.parse(source)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"field 'solution' is no Python program: {error}") from error
    for node in parsed.body:
        if isinstance(node, ast.FunctionDef) and node.name == info["function_name"]:
            body = lines[node.body[0].lineno - 1 : node.end_lineno]
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            others = [*lines[: first - 1], *lines[node.end_lineno :]]
            return "\n".join([*body, "", *others]).rstrip()
    return f"    pass\n\n{source}"
