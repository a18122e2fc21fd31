"""Problem files of any kind that data sets come in: JSON Lines, Parquet, the Hugging Face hub."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from jax_unmask.tasks import sources
from jax_unmask.tasks.base import Example, Source

_HUB = "hub:"
_PARQUET = ".parquet"


class ParquetSource:
    """A Parquet file, read and verified as a whole when it is opened.

    Args:
        path: the file.
        fields: fields that every row must have, as text.
        verify: called with each example; raises ValueError to refuse it.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: if the file holds no rows, is no Parquet file, or a row lacks a field or is
            refused. The message names file and row.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Sequence[str],
        verify: Callable[[Example], object] | None = None,
    ) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError(f"reading {path} needs `pip install pyarrow`") from error
        try:
            self._examples: list[Example] = parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not a Parquet file ({error})") from error
        for number, example in enumerate(self._examples):
            try:
                sources.check_fields(example, fields)
                if verify is not None:
                    verify(example)
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: {error}") from error
        if not self._examples:
            raise ValueError(f"{path} holds no examples; it needs the fields {list(fields)}")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def open_table(
    path: pathlib.Path,
    fields: Sequence[str],
    verify: Callable[[Example], object] | None = None,
) -> Source:
    """The source over a file, by its suffix: `.parquet`, else JSON Lines.

    Raises: as `ParquetSource` and `sources.JsonlSource`.
    """
    kind: Any = ParquetSource if path.suffix == _PARQUET else sources.JsonlSource
    return kind(path, fields, verify)


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """The local file or directory of a path; `hub:OWNER/NAME` is downloaded first.

    Raises:
        FileNotFoundError: there is no such file, directory or data set.
    """
    text = os.fspath(path)
    if not text.startswith(_HUB):
        return pathlib.Path(text).expanduser()
    import huggingface_hub
    from huggingface_hub import errors

    name = text.removeprefix(_HUB)
    try:
        found = huggingface_hub.snapshot_download(
            name, repo_type="dataset", allow_patterns=["*.jsonl", "*.jsonl.gz", "*.parquet"]
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError) as why:
        raise FileNotFoundError(
            f"path={text!r}: data set {name!r} cannot be fetched from the Hugging Face hub "
            f"({why}); give a local directory instead"
        ) from why
    return pathlib.Path(found)


def find(directory: pathlib.Path, stem: str) -> pathlib.Path:
    """The file of a directory that holds a split: JSON Lines, plain or gzipped, or Parquet.

    Raises:
        FileNotFoundError: there is none, or several parts of one.
    """
    for name in (f"{stem}.jsonl", f"{stem}.jsonl.gz", f"{stem}{_PARQUET}"):
        if (directory / name).is_file():
            return directory / name
    parts = sorted(directory.glob(f"**/{stem}-*{_PARQUET}"))
    if len(parts) == 1:
        return parts[0]
    found = f"{len(parts)} parts {stem}-*{_PARQUET}" if parts else "neither of them"
    raise FileNotFoundError(
        f"path={os.fspath(directory)!r} holds neither {stem}.jsonl nor {stem}.jsonl.gz nor "
        f"{stem}{_PARQUET} ({found}); put the split into one such file"
    )


def test_file(path: str | os.PathLike[str], stem: str) -> pathlib.Path:
    """The file of a task that has one file: the path itself, or `STEM` in a directory.

    Raises:
        FileNotFoundError: there is none.
    """
    place = local(path)
    if place.is_dir():
        return find(place, stem)
    if not place.is_file():
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; give a directory with {stem}.jsonl (plain or .gz, "
            "or .parquet), one such file, or hub:OWNER/NAME"
        )
    return place
