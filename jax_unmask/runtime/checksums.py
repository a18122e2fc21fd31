"""CRC-32 sums of the files under a directory, stored in a file among them."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Iterable

from jax_unmask.runtime import files

NAME = "checksums.json"
CHUNK_BYTES = 1 << 22
# Markers that are written after the sums and hold no data.
IGNORED = frozenset({"commit_success.txt"})


def write(directory: str | os.PathLike[str]) -> None:
    """Writes `checksums.json` with size in bytes and CRC-32 of each file in the sub-directories."""
    root = pathlib.Path(directory)
    paths = [
        path for path in sorted(root.glob("*/**/*")) if path.is_file() and path.name not in IGNORED
    ]
    names = [path.relative_to(root).as_posix() for path in paths]
    files.atomic_write(root / NAME, json.dumps(dict(zip(names, _sums(paths), strict=True))))


def problem(directory: str | os.PathLike[str], *, items: Iterable[str]) -> str | None:
    """Compares the files under some of the sub-directories with `checksums.json`.

    Args:
        directory: a directory that `write` was called for.
        items: names of the sub-directories to read; those without any file recorded pass.

    Returns:
        What is wrong, naming the file, or None where all is as it was written.
    """
    root = pathlib.Path(directory)
    try:
        recorded = json.loads((root / NAME).read_bytes())
    except FileNotFoundError:
        return f"{NAME} is missing"
    except ValueError:
        return f"{NAME} is not JSON"
    prefixes = tuple(f"{item}/" for item in items)
    names = [name for name in recorded if name.startswith(prefixes)]
    for name in names:
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != recorded[name][0]:
            return f"{name} has {path.stat().st_size} bytes, written were {recorded[name][0]}"
    for name, found in zip(names, _sums([root / name for name in names]), strict=True):
        if found != recorded[name]:
            return f"the content of {name} has changed since it was written"
    return None


def _sums(paths: list[pathlib.Path]) -> list[list[int]]:
    """[size, CRC-32] of each file; threads help because zlib releases the interpreter lock."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(_sum, paths))


def _sum(path: pathlib.Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return [size, crc]
