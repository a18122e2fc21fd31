"""Docstrings begin with what a thing is, and their examples do what they say; names are unique."""

import ast
import collections
import doctest
import importlib
import pathlib
import re

import pytest

import jax_unmask

PACKAGE = pathlib.Path(jax_unmask.__file__).parent
SLOW = ("jax_unmask.generation.generator",)  # It compiles rollouts.
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODULES]
)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


COPIED = PACKAGE / "pytorch" / "policy.py"


def test_no_two_classes_have_one_name():
    """But for the file that is copied beside other code, whose classes are called as in JAX."""
    names = collections.Counter(
        node.name
        for path, tree in TREES.items()
        if path != COPIED
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_the_file_that_is_copied_imports_nothing_of_the_package():
    imported = {
        name
        for node in ast.walk(TREES[COPIED])
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, "module", None), *(each.name for each in node.names)]
    }
    assert not [name for name in imported if str(name).startswith("jax")]


# Questions, prepositions, references to another docstring, participles: no subject.
NO_SUBJECT = re.compile(
    r"(What|Who|Whoever|Whatever|How|Where|When|If|While|Until|Unless|Because|"
    r"After|As|At|Before|By|For|From|In|Of|On|To|Under|With|Within|Without|"
    r"That|This|Those|These|The same|Both|Everything|Nothing|"
    r"Made|Reading|Summed|Turning|Writing)\b"
)


def test_first_lines_begin_with_the_subject():
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                is_flag = re.match("(is|has)_", getattr(node, "name", "")) and first
                if NO_SUBJECT.match(first) or (is_flag and not re.match("Whether|True", first)):
                    found.append((path.name, first))
    assert found == []
