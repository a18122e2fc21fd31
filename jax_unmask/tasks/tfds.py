"""TensorFlow Datasets' `gsm8k`, prepared and read without TensorFlow."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

from jax_unmask.tasks import files
from jax_unmask.tasks.base import Example

_FIELDS = ("question", "answer")


def read_gsm8k(split: str, data_dir: str | os.PathLike[str] | None = None) -> list[Example]:
    """The examples of a split of the prepared data set `gsm8k`.

    Args:
        split: split in TensorFlow Datasets' notation, such as "train" or "train[:10%]".
        data_dir: where the data set was prepared; None is TensorFlow Datasets' own default.

    Raises:
        FileNotFoundError: if the data set has not been prepared there.
        ImportError: TensorFlow Datasets is not installed.
        ValueError: if the data set has no such split.
    """
    where = None if data_dir is None else os.fspath(data_dir)
    builder = _import_tfds().builder("gsm8k", data_dir=where, file_format="array_record")
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"data set 'gsm8k' has not been prepared in {builder.data_path} (as array_record). "
            "Either prepare it, with `tfds.builder('gsm8k', data_dir=..., "
            "file_format='array_record').download_and_prepare()` or from JSON Lines files with "
            "`jax_unmask.tasks.tfds.prepare_gsm8k(jsonl_dir, data_dir)`; or do without TensorFlow "
            "Datasets: give the task path=DIR, a directory with train.jsonl and test.jsonl"
        )
    records = builder.as_data_source(split=split)
    return [{name: record[name].decode("utf-8") for name in _FIELDS} for record in records]


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


def prepare_gsm8k(
    jsonl_dir: str | os.PathLike[str], data_dir: str | os.PathLike[str]
) -> pathlib.Path:
    """Prepares TensorFlow Datasets' `gsm8k` from local files: no network, no TensorFlow.

    The result is what the stock builder's `download_and_prepare` writes, with the splits `train`
    and `test` only, and is read back by `read_gsm8k(split, data_dir)`.

    Args:
        jsonl_dir: directory with `train.jsonl` and `test.jsonl`, plain or gzipped.
        data_dir: TensorFlow Datasets' root directory to write to.

    Returns:
        The directory of the prepared data set.
    """
    tfds = _import_tfds()
    found = {split: files.table_file(jsonl_dir, split) for split in ("train", "test")}
    for file in found.values():
        files.read_table(file, _FIELDS, _with_one_answer)
    stock = tfds.text.Gsm8k

    class LocalGsm8k(stock, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        """The stock builder, reading files that are here already."""

        name = "gsm8k"

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(file) for split, file in plain.items()}

    with tempfile.TemporaryDirectory() as unpacked:  # The stock builder reads plain files only.
        plain = {split: pathlib.Path(unpacked) / f"{split}.jsonl" for split in found}
        for split, file in found.items():
            lines = [line for line in files.read_text(file).split("\n") if line.strip()]
            plain[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
        builder = LocalGsm8k(data_dir=os.fspath(data_dir), file_format="array_record")
        builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def _with_one_answer(example: Example) -> Example:
    if example["answer"].count("#### ") != 1:
        raise ValueError("field 'answer' must hold '#### ' exactly once")
    return example
