"""CRC-32 sums of the files under a directory, kept in files beside them.

Orbax gives each process directories of its own, `ITEM/ocdbt.process_N`, and lets process 0 write
the rest. Each process sums what it wrote, and reads a share of all when they are compared, so that
every byte is read once, however many processes there are.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable

from jax_unmask.runtime import files

NAME = "checksums.json"
CHUNK_BYTES = 1 << 22
# Markers that are written after the sums and hold no data.
IGNORED = frozenset({"commit_success.txt"})
# Items have other names until process 0 has everything.
_RENAMED = re.compile(r"\.orbax-checkpoint-tmp[^/]*")
_OF_PROCESS = re.compile(r"ocdbt\.process_(\d+)")


def write(directory: str | os.PathLike[str], process: int = 0) -> None:
    """Writes size in bytes and CRC-32 of each file in the sub-directories that a process wrote.

    Process 0 comes last: `checksums.json` also sums `checksums.N.json`, those of process N.
    """
    root = pathlib.Path(directory)
    paths = [path for path in root.glob("*/**/*") if _writer(path.relative_to(root)) == process]
    if not process:
        paths += root.glob("checksums.*.json")
    paths = sorted(path for path in paths if path.is_file() and path.name not in IGNORED)
    names = [_RENAMED.sub("", path.relative_to(root).as_posix()) for path in paths]
    target = root / (f"checksums.{process}.json" if process else NAME)
    files.atomic_write(target, json.dumps(dict(zip(names, _sums(paths), strict=True))))


def _writer(path: pathlib.Path) -> int:
    found = [match for part in path.parts if (match := _OF_PROCESS.fullmatch(part))]
    return int(found[0][1]) if found else 0


def problem(
    directory: str | os.PathLike[str], *, items: Iterable[str], process: int = 0, processes: int = 1
) -> str | None:
    """Compares files under some of the sub-directories with their recorded sums.

    Args:
        directory: a directory that `write` was called for.
        items: names of the sub-directories to read; those without any file recorded pass.
        process: number of this process.
        processes: how many share the work; each reads its share of the files.

    Returns:
        What is wrong, naming the file, or None where all is as it was written.
    """
    root = pathlib.Path(directory)
    try:
        recorded = json.loads((root / NAME).read_bytes())
        for name in [name for name in recorded if "/" not in name]:
            recorded |= json.loads((root / name).read_bytes())
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is missing"
    except ValueError:
        return f"{NAME} or a file that it names is not JSON"
    prefixes = tuple(f"{item}/" for item in items)
    names = sorted(name for name in recorded if name.startswith(prefixes) or "/" not in name)
    names = names[process::processes]
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
