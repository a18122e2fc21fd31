"""Problem files: JSON Lines, JSON and Parquet, in local directories or on the Hugging Face hub."""

import gzip
import io
import json
import os
import pathlib
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jax_unmask.runtime.files import local_path
from jax_unmask.tasks.base import Example

HUB = "hub:"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
# One of several files of a split, as the hub names them: train-00000-of-00002-0123abc.parquet.
_PART = re.compile(r"(?P<stem>.+?)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?:-\w+)?")
Path = str | os.PathLike[str]
# What a task's own code raises where a field that it reads is a list, a number or missing.
_OTHER_KIND = (TypeError, AttributeError, LookupError, ArithmeticError, SyntaxError, RecursionError)


def read_table(
    paths: pathlib.Path | Iterable[pathlib.Path],
    fields: Sequence[str] = (),
    parse: Callable[[Example], Example] | None = None,
    place_field: str | None = None,
) -> list[Example]:
    """The examples of files, checked as a whole: Parquet, JSON or JSON Lines, plain or gzipped.

    Args:
        paths: the files of a split, in order; a suffix determines the format.
        fields: fields that every example must have, as text.
        parse: maps each example to the form that the task works with; raises ValueError to refuse
            it.
        place_field: field that takes the file and the line or row of each example, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: a file is empty or of another format, or an example lacks a field or is
            refused. The message names the file and the line or row.
    """
    examples: list[Example] = []
    for path in [paths] if isinstance(paths, pathlib.Path) else paths:
        if not path.is_file():
            raise FileNotFoundError(f"path={str(path)!r} is not a file; give one of {_SUFFIXES}")
        before = len(examples)
        for place, example in (_parquet if path.suffix == ".parquet" else _json)(path):
            try:
                check_fields(example, fields)
                example = parse(example) if parse else example
                examples.append(
                    {**example, place_field: f"{path}, {place}"} if place_field else example
                )
            except ValueError as error:
                raise ValueError(f"{path}, {place}: {error}") from error
            except _OTHER_KIND as error:
                kind = f"{type(error).__name__}: {error}"
                raise ValueError(f"{path}, {place}: a field is of another kind ({kind})") from error
        if len(examples) == before:
            raise ValueError(f"{path} holds no examples; each needs the fields {list(fields)}")
    return examples


def _json(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Objects of a file: one a line, a list of them, or one alone."""
    text = read_text(path)
    if path.name.endswith((".json", ".json.gz")):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            pass  # JSON Lines under another name.
        else:
            rows = whole if isinstance(whole, list) else [whole]
            yield from ((f"object {number}", row) for number, row in enumerate(rows))
            return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: malformed JSON ({error})") from error


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, Example]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"reading {path} needs `pip install pyarrow`") from error
    try:
        # Opened as a file: a table would take folders of its path for columns.
        rows = parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged, or not a Parquet file ({said})") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


def read_text(path: pathlib.Path) -> str:
    """The text of a file in UTF-8 (a byte order mark is no part), gzipped if its name says so.

    Raises:
        ValueError: it is something else.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            most = most_bytes(len(content))
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(most + 1)
            if len(content) > most:
                raise ValueError(f"{path} unpacks to more than {most:,} bytes; unpack it yourself")
        return content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file ({error}); unpack it or rename it") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def most_bytes(compressed: int) -> int:
    """The largest size to which so many bytes may unpack: text does not shrink to a hundredth."""
    return max(1 << 26, 100 * compressed)


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
    """The local file or directory of a path; `hub:OWNER/NAME[/FOLDER]` is downloaded first.

    Without a network, the hub's cache serves.

    Raises:
        FileNotFoundError: there is no such data set, or neither a network nor a copy of it.
    """
    text = os.fspath(path)
    if not text.startswith(HUB):
        return local_path(text).expanduser()
    import huggingface_hub
    from huggingface_hub import errors

    owner, _, rest = text.removeprefix(HUB).partition("/")
    name, _, folder = rest.partition("/")
    wanted = [f"{folder}/*{suffix}" if folder else f"*{suffix}" for suffix in _SUFFIXES]
    try:
        found = huggingface_hub.snapshot_download(
            f"{owner}/{name}", repo_type="dataset", allow_patterns=wanted
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError) as why:
        said = " ".join(str(why).split())
        raise FileNotFoundError(
            f"path={text!r}: data set {f'{owner}/{name}'!r} is neither in the Hugging Face cache "
            f"nor to be had from the hub ({said}). On a machine with a network run `hf download "
            f"--repo-type dataset {owner}/{name} --local-dir DIR`, copy DIR here and give it as "
            "the path (--config.task.path=DIR, --data=DIR)"
        ) from why
    return pathlib.Path(found) / folder


def split_files(
    path: Path, stems: Sequence[str], *, name: str = "", folders: Sequence[str] = ()
) -> list[pathlib.Path]:
    """The files of a split, in the layouts in which data sets are published.

    A split is one file, or several (`train-00000-of-00002.parquet`, ...), in the directory, in its
    `data/`, or in folders of it (configurations, subjects, or the split itself: `train/*/1.json`).

    Args:
        path: one file, a directory, or `hub:OWNER/NAME[/FOLDER]`.
        stems: regular expressions for a split's name, the preferred one first.
        name: name of the task; a directory may hold a folder for each of several tasks.
        folders: the folder to take where several hold the split, the preferred one first; "*"
            takes all of them.

    Raises:
        FileNotFoundError: there is none, a part of it is missing, or several folders hold it.
    """
    place = local(path)
    if place.is_file():
        return [place]
    place = place / name if name and (place / name).is_dir() else place
    wanted = f"{_plain(stems[0])}.jsonl (or .parquet, .json, gzipped)"
    if not place.is_dir():
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; give a directory with {wanted}, one such file, "
            f"or {HUB}OWNER/NAME"
        )
    files = [(file, *_place_of(file, place)) for file in sorted(place.rglob("*"))]
    for stem in stems:
        found: dict[str, dict[str, list[pathlib.Path]]] = defaultdict(lambda: defaultdict(list))
        for file, folder, own, suffix in files:
            if suffix and re.fullmatch(stem, own, re.IGNORECASE):
                found["/".join(folder)][suffix].append(file)
            elif suffix and (inside := [f for f in folder if re.fullmatch(stem, f)]):
                found["/".join(f for f in folder if f not in inside)][suffix].append(file)
        if found:
            chosen = _choose(place, found, folders)
            return [file for folder in chosen for file in _whole(found[folder])]
    raise FileNotFoundError(f"path={str(place)!r} holds no {wanted}; put it there")


def _place_of(file: pathlib.Path, top: pathlib.Path) -> tuple[list[str], str, str]:
    """Folders, stem and suffix of a file; an empty suffix for what holds no examples."""
    parents = file.relative_to(top).parts[:-1]
    suffix = next((each for each in _SUFFIXES if file.name.endswith(each)), "")
    if not file.is_file() or any(part.startswith(".") for part in (*parents, file.name)):
        suffix = ""
    stem = file.name.removesuffix(suffix)
    part = _PART.fullmatch(stem)
    return [each for each in parents if each != "data"], part["stem"] if part else stem, suffix


def _choose(place: pathlib.Path, found: Iterable[str], folders: Sequence[str]) -> list[str]:
    names = sorted(found)
    if "" in names:
        return [""]
    if len(names) == 1 or "*" in folders:
        return names
    for folder in folders:
        if folder in names:
            return [folder]
    raise FileNotFoundError(
        f"path={str(place)!r} holds the split in several folders ({', '.join(names)}); give one of "
        f"them: {place / names[0]}, or {HUB}OWNER/NAME/{names[0]}"
    )


def _whole(by_suffix: dict[str, list[pathlib.Path]]) -> list[pathlib.Path]:
    """The files of one format; refuses a split of which a part is missing."""
    files = next(by_suffix[suffix] for suffix in _SUFFIXES if suffix in by_suffix)
    parts = [_PART.match(file.name) for file in files]
    numbers = {(int(part["part"]), int(part["parts"])) for part in parts if part}
    count = max((count for _, count in numbers), default=0)
    if missing := sorted(set(range(count)) - {number for number, _ in numbers}):
        raise FileNotFoundError(
            f"{files[0].parent} holds {len(numbers)} of the {count} parts of {files[0].name}; "
            f"part {missing[0]:05d} is missing"
        )
    return files


def _plain(stem: str) -> str:
    """A name that a regular expression matches, for messages."""
    return re.sub(r"\\d\*|\.\*", "", stem).partition("|")[0]
