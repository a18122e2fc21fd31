"""Tests compare the key and the value in an error or a log, not its sentence."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

TESTS = pathlib.Path(__file__).parent
WORD = r"[A-Za-z][a-z]*(?:'[a-z]+)?[,;:.]?"
# Three words, but for a list of names.
SENTENCE = re.compile(rf"(?:^|(?<=\s))(?!\S+, \S+, )(?:{WORD} ){{2}}{WORD}(?=\s|$)")
# What holds the text of an error or of a log.
MESSAGE = re.compile(
    r"\bstr\(|\.value\b|\b(caplog|stderr|err|errors?|message|fails|refused|parse|warnings?)\b"
)
TOLD = re.compile(r"(str|message|fails|refused|parse)\(|.*\.err$")
# What it is compared with.
TEXTS = (ast.Constant, ast.JoinedStr, ast.Name, ast.Tuple, ast.List, ast.IfExp)


def strings(node: ast.AST) -> list[str]:
    found = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return [each for each in found if isinstance(each, str)]


def parametrized(function: ast.FunctionDef, module: ast.Module) -> dict[str, list[str]]:
    """The strings that each argument of a parametrised test gets."""
    lists = {
        target.id: each.value
        for each in module.body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    }
    found: dict[str, list[str]] = {}
    for mark in function.decorator_list:
        if not (isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith("parametrize")):
            continue
        names, cases = mark.args
        cases = lists.get(cases.id, cases) if isinstance(cases, ast.Name) else cases
        columns = strings(names)
        for case in getattr(cases, "elts", ()):
            values = case.elts if isinstance(case, ast.Tuple) and len(columns) > 1 else [case]
            for name, value in zip(columns, values, strict=False):
                found.setdefault(name, []).extend(strings(value))
    return found


def pinned(module: ast.Module) -> Iterator[str]:
    """Texts that are compared with messages."""
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef):
            continue
        given = parametrized(function, module)
        expected = []
        messages = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and TOLD.match(ast.unparse(node.value))
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.keyword) and node.arg == "match":
                expected.append(node.value)
            elif isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                texts = [ast.unparse(side) for side in sides]
                if any(MESSAGE.search(each) or each in messages for each in texts):
                    expected += [side for side in sides if isinstance(side, TEXTS)]
        for node in expected:
            names = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
            yield from strings(node)
            yield from (text for name in names for text in given.get(name, ()))


@pytest.mark.parametrize(
    ("text", "is_sentence"),
    [("it must be", True), ("steps = 3: must be", False), ("one, two, three", False)],
)
def test_a_sentence_is_told_from_a_value(text, is_sentence):
    assert bool(SENTENCE.search(text)) == is_sentence


def test_no_test_compares_the_prose_of_a_message():
    found = [
        f"{path.relative_to(TESTS)}: {text!r}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for text in pinned(ast.parse(path.read_text(encoding="utf-8")))
        if path != pathlib.Path(__file__) and SENTENCE.search(text)
    ]
    assert not found, "compare the key and the value, not the sentence:\n" + "\n".join(found)
