"""Writing files such that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import os
import pathlib
import uuid


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
