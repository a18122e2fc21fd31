from __future__ import annotations

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def fakes():
    """Programs that stand for those of a scheduler, see fakes.py."""
    spec = importlib.util.spec_from_file_location(
        "fakes", pathlib.Path(__file__).with_name("fakes.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
