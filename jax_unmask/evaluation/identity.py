"""Digests of what a result row was measured on; they do not change when new settings are added."""

import dataclasses
import hashlib
from typing import Any

import jax

from jax_unmask.runtime.placement import to_host

_LENGTH = 16


def essence(value: Any) -> str:
    """Text of a configuration by its fields, in alphabetical order, without those at their default.

    A field that is added later, with a default that changes nothing, changes no text. Fields that
    take no part in `repr` are left out, and so are the parent and the name that linen modules have;
    values that are no dataclasses stand as `repr` shows them.
    """
    if isinstance(value, tuple):
        return f"({', '.join(map(essence, value))})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    said = []
    for field in sorted(dataclasses.fields(value), key=lambda field: field.name):
        content, default = getattr(value, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.repr and field.name not in ("parent", "name") and content != default:
            said.append(f"{field.name}={essence(content)}")
    return f"{type(value).__name__}({', '.join(said)})"


def tree_hash(tree: Any, *, first_rows_only: bool = False) -> str:
    """Digest of arrays, their names and types; the same for every layout over devices.

    Args:
        tree: a pytree of arrays.
        first_rows_only: read only the first row of each array: enough to distinguish denoisers,
            because training changes every tensor, and quick at any size.
    """
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        part = leaf[(0,) * (leaf.ndim - 1)] if first_rows_only else leaf
        parts.append(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        parts.append(to_host(part).tobytes())
    return digest(*parts)


def digest(*parts: bytes | str) -> str:
    """16 hexadecimal digits of SHA-256 over byte strings and their lengths."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()[:_LENGTH]
