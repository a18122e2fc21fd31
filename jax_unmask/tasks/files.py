"""Problem files: JSON Lines and Parquet, in local directories or on the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax_unmask.tasks.base import Example, Source, Split
from jax_unmask.tasks.sources import hold_out

_HUB = "hub:"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
Path = str | os.PathLike[str]


def read_table(
    path: pathlib.Path,
    fields: Sequence[str] = (),
    parse: Callable[[Example], Example] | None = None,
) -> list[Example]:
    """The examples of a file, checked as a whole: Parquet, else JSON Lines, plain or gzipped.

    Args:
        path: the file; its suffix determines the format.
        fields: fields that every example must have, as text.
        parse: maps each example to the form that the task works with; raises ValueError to refuse
            it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: the file is empty or of another format, or an example lacks a field or is
            refused. The message names the file and the line or row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r} is not a file; give one of {_SUFFIXES}")
    examples = []
    for place, record in (_parquet if path.suffix == ".parquet" else _json_lines)(path):
        try:
            example = json.loads(record) if isinstance(record, str) else record
            check_fields(example, fields)
            examples.append(parse(example) if parse else example)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, {place}: malformed JSON ({error})") from error
        except ValueError as error:
            raise ValueError(f"{path}, {place}: {error}") from error
    if not examples:
        raise ValueError(f"{path} holds no examples; each needs the fields {list(fields)}")
    return examples


def _json_lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, Example]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"reading {path} needs `pip install pyarrow`") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error})") from error
    for number, row in enumerate(rows):
        yield f"row {number}", row


def read_text(path: pathlib.Path) -> str:
    """The text of a file in UTF-8, gzipped if its name ends in `.gz`.

    Raises:
        ValueError: it is something else.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file ({error}); unpack it or rename it") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def check_fields(example: Any, fields: Sequence[str]) -> None:
    """Raises ValueError unless an example is an object that has all fields, as text."""
    if not isinstance(example, dict):
        raise ValueError(f"expected a JSON object, found {type(example).__name__}")
    for field in fields:
        if field not in example:
            raise ValueError(f"field {field!r} is missing; found {sorted(example)}")
        if not isinstance(example[field], str):
            raise ValueError(f"field {field!r} must be text, found {example[field]!r}")


def local(path: Path) -> pathlib.Path:
    """The local file or directory of a path; `hub:OWNER/NAME` is downloaded first.

    Raises:
        FileNotFoundError: there is no such data set.
    """
    text = os.fspath(path)
    if not text.startswith(_HUB):
        return pathlib.Path(text).expanduser()
    import huggingface_hub
    from huggingface_hub import errors

    name = text.removeprefix(_HUB)
    try:
        found = huggingface_hub.snapshot_download(
            name, repo_type="dataset", allow_patterns=[f"*{suffix}" for suffix in _SUFFIXES]
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError) as why:
        raise FileNotFoundError(
            f"path={text!r}: data set {name!r} cannot be fetched from the Hugging Face hub "
            f"({why}); give a local directory instead"
        ) from why
    return pathlib.Path(found)


def table_file(path: Path, stem: str) -> pathlib.Path:
    """The file of a path: the path itself, or `STEM.jsonl`, `.jsonl.gz`, `.parquet` in a directory.

    Raises:
        FileNotFoundError: there is none, or a split that is cut into several files.
    """
    place = local(path)
    if place.is_file():
        return place
    names = [stem + suffix for suffix in _SUFFIXES]
    wanted = f"{names[0]} (or {', '.join(names[1:])})"
    if not place.is_dir():
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; give a directory with {wanted}, one such file, "
            f"or {_HUB}OWNER/NAME"
        )
    for name in names:
        if (place / name).is_file():
            return place / name
    shards = sorted(place.glob(f"**/{stem}-*.parquet"))
    if len(shards) == 1:
        return shards[0]
    found = f"{len(shards)} files {stem}-*.parquet" if shards else "no such file"
    raise FileNotFoundError(
        f"path={str(place)!r} holds {found}; put the split into one file {wanted}"
    )


def open_split(
    path: Path,
    split: Split,
    read: Callable[[pathlib.Path], Source],
    *,
    test_stem: str = "test",
) -> Source:
    """A split of local files; the validation split is held out from the training file.

    Args:
        path: a directory with the files `train` and `test`, `hub:OWNER/NAME`, or a single file:
            the test set if its name starts with "test", else the training set.
        split: the split.
        read: makes a source of a file, as `read_table` does.
        test_stem: name of the test file in a directory, without its suffix.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: the single file does not serve the split.
    """
    file = table_file(path, test_stem if split == "test" else "train")
    is_test = file.name.startswith(("test", test_stem))
    if is_test != (split == "test"):
        raise ValueError(
            f"path={str(path)!r} is a {'test' if is_test else 'training'} file and holds no split "
            f"{split!r}; give a directory with train.jsonl and {test_stem}.jsonl"
        )
    source = read(file)
    return source if split == "test" else hold_out(source, split)
