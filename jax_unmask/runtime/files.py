"""Files of rows, and atomic writes: readers never see half a file, not even after a crash."""

import contextlib
import errno
import glob
import itertools
import json
import logging
import os
import pathlib
import re
import socket
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.(?P<process>\d+)\.(?P<host>.+)")


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
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{os.fspath(path)!a}: the name is not UTF-8; give another") from None
    return pathlib.Path(path)


def atomic_write(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes a file whole or not at all, and has it on disk when it returns.

    The data goes to a temporary file in the same directory, which then replaces `path` in one
    step; a crash leaves the old file, or none. Missing parent directories are made. Temporary files
    that processes of this host left for `path` when they were killed are removed.

    Args:
        path: the file to write; replaced where it exists.
        data: its content; text is written as UTF-8.
    """
    target = local_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent.glob(f".{glob.escape(target.name)}.*"))
    writer = f"{os.getpid()}.{socket.gethostname()}"
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.{writer}")
    try:
        with named(target), temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def remove_abandoned(paths: Iterable[pathlib.Path]) -> None:
    """Removes the temporary files of `atomic_write` whose writers are known to have ended."""
    for path in paths:
        found = _TEMPORARY.fullmatch(path.name)
        if found and has_ended(found["host"], int(found["process"])):
            path.unlink(missing_ok=True)


def has_ended(host: object, process: object) -> bool:
    """Whether a process is known to have ended; nothing is known of other hosts."""
    if host != socket.gethostname() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # No process has a number that large.
        return True
    except PermissionError:  # Another user's.
        pass
    return False


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A path beside, for another library to write; what it wrote then replaces `path`.

    Raises:
        OSError: the disk is full; names the file, also where the library raises something else.
    """
    target = local_path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # Of a writer that was killed.
        partial.touch()
        permissions = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        partial.chmod(permissions)  # Those of new files: some libraries keep theirs to the owner.
        partial.replace(target)
    except Exception as error:
        partial.unlink(missing_ok=True)
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise


@contextlib.contextmanager
def named(path: pathlib.Path) -> Iterator[None]:
    """Errors in writing, such as of a full disk, name no file of themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Blocks until a directory's entries (creations, renames) are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_file(path: pathlib.Path) -> None:
    """Refuses a path that is there and no file: to read or write a pipe could wait forever."""
    if path.exists() and not path.is_file():
        raise FileExistsError(
            errno.EEXIST, "a directory, pipe or device is where a file must be", str(path)
        )


def read_json_rows(
    path: str | os.PathLike[str], field: str, kind: type = object
) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, none where it does not exist.

    Args:
        path: the file.
        field: what every row must have.
        kind: type of that field.

    Raises:
        ValueError: a line is not a JSON object with that field; names file and line.
    """
    path = pathlib.Path(path)
    require_file(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    return list(_rows(path, lines, field, kind))


def _rows(
    path: pathlib.Path, lines: Iterable[bytes], field: str, kind: type
) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or field not in row or not isinstance(row[field], kind):
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a {field!r}, found "
                f"{line[:80]!r}. Repair or delete the line, or give another place."
            )
        yield row


class Closing:
    """A context manager whose end is `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases what this object has."""


class JsonLog(Closing):
    """An append-only JSON Lines file. A line that a crash left half written is cut off.

    Args:
        path: the file; made, with its directories, where it does not exist.
        field: what every row must have.
        kind: type of that field.
        keep: rows from the first for which this is false are cut off.

    Attributes:
        path: the file.
        rows: those that it held when it was opened.

    Raises:
        ValueError: a line before the last is not a JSON object with that field.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        field: str,
        kind: type = object,
        keep: Callable[[dict[str, Any]], bool] = lambda row: True,
    ) -> None:
        self.path = pathlib.Path(path)
        require_file(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, torn = content.split(b"\n")
        if torn:
            message = "%s: cutting off line %d, which a crash left half written"
            logger.warning(message, self.path, len(lines) + 1)
        self.rows = list(itertools.takewhile(keep, _rows(self.path, lines, field, kind)))
        self._file = self.path.open("ab")
        self._file.truncate(sum(len(line) + 1 for line in lines[: len(self.rows)]))
        sync_directory(self.path.parent)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a row to the kernel at once: a killed process loses none."""
        with named(self.path):
            self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            self._file.flush()

    def sync(self) -> None:
        """Blocks until all rows are on disk.

        Raises:
            FileNotFoundError: the file was deleted; rows would be lost with it.
        """
        with named(self.path):
            os.fsync(self._file.fileno())
            if not os.fstat(self._file.fileno()).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "deleted while rows were written to it")

    def close(self) -> None:
        """Syncs and closes the file."""
        if not self._file.closed:
            with named(self.path):
                os.fsync(self._file.fileno())
                self._file.close()
