"""Files of rows, and atomic writes: readers never see half a file, not even after a crash."""

from __future__ import annotations

import json
import os
import pathlib
import uuid
from typing import Any


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, if it is one of this machine's file systems.

    >>> local_path("gs://bucket/run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: gs://bucket/run: only paths of file systems are read and written; mount the store...
    """
    if "://" in os.fspath(path):
        raise ValueError(
            f"{path}: only paths of file systems are read and written; mount the store, or copy "
            "what is in it"
        )
    return pathlib.Path(path)


def atomic_write(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes a file whole or not at all, and has it on disk when it returns.

    The data goes to a temporary file in the same directory, which then replaces `path` in one
    step; a crash leaves the old file, or none. Missing parent directories are made.

    Args:
        path: the file to write; replaced where it exists.
        data: its content; text is written as UTF-8.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Blocks until a directory's entries (creations, renames) are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_rows(path: str | os.PathLike[str], field: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, none where it does not exist.

    Args:
        path: the file.
        field: what every row must have.

    Raises:
        ValueError: a line is not a JSON object with that field; names file and line.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or field not in row:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a {field!r}, found "
                f"{line[:80]!r}. Repair or delete the line, or give another place."
            )
        rows.append(row)
    return rows
