"""Comparisons bit for bit, of trees and of safetensors files."""

import pathlib
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file


def trees(found: Any, expected: Any) -> None:
    """Two trees have the same structure, types and values."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def tensors(directory: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
    """The safetensors files of a directory hold exactly these tensors."""
    found = {k: v for path in directory.glob("*.safetensors") for k, v in load_file(path).items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes(), name
