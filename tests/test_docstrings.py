"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import pathlib

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
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODULES],
)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
