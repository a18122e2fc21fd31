"""Where examples come from: JSON Lines files and TensorFlow Datasets, both with random access."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from jax_unmask.tasks.base import Example, Source, Split

# One of so many examples of a training file is held out for validation.
VALIDATION_EVERY = 15
_COMPRESSED = ".gz"


class JsonlSource:
    """A JSON Lines file, plain or gzipped, read and verified as a whole when it is opened.

    Args:
        path: the file; gzipped if its name ends in `.gz`.
        fields: fields that every line must have, as text.
        verify: called with each example; raises ValueError to refuse it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or not readable as text, or if a line is not a JSON object,
            lacks a field or is refused by `verify`. The message names file and line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Sequence[str],
        verify: Callable[[Example], object] | None = None,
    ) -> None:
        self._path = pathlib.Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(f"path={str(path)!r} is not a file; give a .jsonl or .jsonl.gz")
        self._examples: list[Example] = []
        for line_number, line in enumerate(_read_text(self._path).split("\n"), start=1):
            if line.strip():
                try:
                    example = _parse_line(line, fields)
                    if verify is not None:
                        verify(example)
                except ValueError as error:
                    raise ValueError(f"{self._path}, line {line_number}: {error}") from error
                self._examples.append(example)
        if not self._examples:
            raise ValueError(
                f"{self._path} holds no examples; it needs one JSON object per line with the "
                f"fields {list(fields)}"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def __repr__(self) -> str:
        return f"JsonlSource({str(self._path)!r})"


def _read_text(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix == _COMPRESSED:
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file ({error}); unpack it or rename it") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def _parse_line(line: str, fields: Sequence[str]) -> Example:
    try:
        example = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"malformed JSON ({error}): {line[:80]!r}") from error
    if not isinstance(example, dict):
        raise ValueError(f"expected a JSON object, found {type(example).__name__}: {line[:80]!r}")
    check_fields(example, fields)
    return example


def check_fields(example: Example, fields: Sequence[str]) -> None:
    """Raises ValueError unless an example has all fields, as text."""
    for field in fields:
        if field not in example:
            raise ValueError(f"field {field!r} is missing; found {sorted(example)}")
        if not isinstance(example[field], str):
            raise ValueError(f"field {field!r} must be text, found {example[field]!r}")


class TfdsSource:
    """A split of a prepared data set of TensorFlow Datasets, read without TensorFlow.

    Args:
        name: name of the data set, such as "gsm8k".
        split: split in TensorFlow Datasets' notation, such as "train" or "train[:10%]".
        data_dir: where the data set was prepared; None is TensorFlow Datasets' own default.
        fields: fields to keep; None keeps all.

    Raises:
        FileNotFoundError: if the data set has not been prepared there.
        ValueError: if the data set has no such split or field.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str | os.PathLike[str] | None = None,
        fields: Sequence[str] | None = None,
    ) -> None:
        tfds = _import_tfds()
        where = None if data_dir is None else os.fspath(data_dir)
        builder = tfds.builder(name, data_dir=where, file_format="array_record")
        if not builder.is_prepared():
            raise FileNotFoundError(
                f"data set {name!r} has not been prepared in {builder.data_path} (as array_record)."
                " Either prepare it, with "
                f"`tfds.builder({name!r}, data_dir=..., file_format='array_record')"
                ".download_and_prepare()` or from JSON Lines files with "
                "`jax_unmask.tasks.sources.prepare_gsm8k_tfds(jsonl_dir, data_dir)`; or do without "
                "TensorFlow Datasets: give the task path=DIR, a directory with train.jsonl and "
                "test.jsonl"
            )
        unknown = set(fields or ()) - set(builder.info.features)
        if unknown:
            raise ValueError(f"data set {name!r} has no fields {sorted(unknown)}")
        self._fields = list(builder.info.features if fields is None else fields)
        self._records: Sequence[Mapping[str, Any]] = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[int(index)]
        return {field: _text(record[field]) for field in self._fields}


def _text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _import_tfds() -> Any:
    """TensorFlow Datasets with its `gsm8k` builder registered (slow: import only where needed)."""
    try:
        import tensorflow_datasets as tfds

        # Registers the builder: a legacy data set, unknown to `tfds.builder` until its module has
        # been imported.
        import tensorflow_datasets.text.gsm8k.gsm8k
    except ImportError as error:
        raise ImportError(
            "reading through TensorFlow Datasets needs `pip install tensorflow-datasets "
            "array_record importlib_resources`; a task with path=DIR needs none of them"
        ) from error
    return tfds


def prepare_gsm8k_tfds(
    jsonl_dir: str | os.PathLike[str], data_dir: str | os.PathLike[str]
) -> pathlib.Path:
    """Prepares TensorFlow Datasets' `gsm8k` from local files: no network, no TensorFlow.

    The result is what the stock builder's `download_and_prepare` writes, with the splits `train`
    and `test` only, and is read back by `TfdsSource("gsm8k", split, data_dir)`.

    Args:
        jsonl_dir: directory with `train.jsonl` and `test.jsonl`, plain or gzipped.
        data_dir: TensorFlow Datasets' root directory to write to.

    Returns:
        The directory of the prepared data set.
    """
    tfds = _import_tfds()
    files = {split: find_jsonl(jsonl_dir, split) for split in ("train", "test")}
    for file in files.values():
        JsonlSource(file, ("question", "answer"), verify=_has_one_answer)
    stock = tfds.text.Gsm8k

    class LocalGsm8k(stock, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        """The stock builder, reading files that are here already."""

        name = "gsm8k"

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(file) for split, file in plain.items()}

    with tempfile.TemporaryDirectory() as unpacked:  # The stock builder reads plain files only.
        plain = {split: pathlib.Path(unpacked) / f"{split}.jsonl" for split in files}
        for split, file in files.items():
            lines = [line for line in _read_text(file).split("\n") if line.strip()]
            plain[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
        builder = LocalGsm8k(data_dir=os.fspath(data_dir), file_format="array_record")
        builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def _has_one_answer(example: Example) -> None:
    if example["answer"].count("#### ") != 1:
        raise ValueError("field 'answer' must hold '#### ' exactly once")


def find_jsonl(directory: str | os.PathLike[str], stem: str) -> pathlib.Path:
    """The file `STEM.jsonl` or `STEM.jsonl.gz` of a directory.

    Raises:
        FileNotFoundError: if there is neither.
    """
    for name in (f"{stem}.jsonl", f"{stem}.jsonl{_COMPRESSED}"):
        file = pathlib.Path(directory) / name
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"path={os.fspath(directory)!r} holds neither {stem}.jsonl nor {stem}.jsonl{_COMPRESSED}"
    )


class Subset:
    """Some examples of a source, in the given order."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]


class Concatenation:
    """Sources one after the other, each example tagged with the name of the source it is from.

    Args:
        sources: sources by name.
        tag: field that takes the name.
    """

    def __init__(self, sources: Mapping[str, Source], tag: str) -> None:
        self._names = list(sources)
        self._sources = list(sources.values())
        self._ends = list(accumulate(len(source) for source in self._sources))
        self._tag = tag

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0..{len(self) - 1}")
        which = bisect_right(self._ends, index)
        first = self._ends[which - 1] if which else 0
        return {**self._sources[which][index - first], self._tag: self._names[which]}


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is a `Split`."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split={split!r} is unknown; choose train, validation or test")


def hold_out(source: Source, split: Split) -> Subset:
    """The training or the validation part of a training set: every 15th example is held out.

    Of GSM8K's 7,473 training problems 499 are held out, of MATH's 7,500 there are 500.

    Args:
        source: the whole training set.
        split: "train" or "validation".
    """
    indices = np.arange(len(source))
    held_out = indices % VALIDATION_EVERY == 0
    return Subset(source, indices[held_out if split == "validation" else ~held_out])


def local_split(
    path: str | os.PathLike[str],
    split: Split,
    open_file: Callable[[pathlib.Path], Source],
    *,
    test_stem: str = "test",
) -> Source:
    """A split of local JSON Lines files.

    Args:
        path: a directory with `train.jsonl` and `test.jsonl`, plain or gzipped, or as `.parquet`;
            `hub:OWNER/NAME` for such a data set on the Hugging Face hub; or a single file. A single
            file serves as test set if its name starts with "test" and as training set (from which
            the validation set is held out) otherwise.
        split: the split.
        open_file: makes a source of a file.
        test_stem: name of the test file in a directory, without its suffix.

    Raises:
        FileNotFoundError: if there is no such file or directory.
        ValueError: if the single file does not serve the split.
    """
    check_split(split)
    from jax_unmask.tasks import files  # It builds on this module.

    path = files.local(path)
    if path.is_dir():
        file = files.find(path, test_stem if split == "test" else "train")
    elif path.is_file():
        file = path
        is_test = file.name.startswith(("test", test_stem))
        if is_test != (split == "test"):
            raise ValueError(
                f"path={str(path)!r} is a {'test' if is_test else 'training'} file and holds no "
                f"split {split!r}; give a directory with train.jsonl and {test_stem}.jsonl"
            )
    else:
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; give a directory with train.jsonl and "
            f"{test_stem}.jsonl (plain or .gz), or one such file"
        )
    source = open_file(file)
    return source if split == "test" else hold_out(source, split)
