"""TensorFlow Datasets' `gsm8k`, prepared and read without TensorFlow."""

import json
import os
import pathlib
import tempfile
from typing import Any

from jax_unmask.runtime.files import atomic_write
from jax_unmask.tasks import files
from jax_unmask.tasks.base import Example

_FIELDS = ("question", "answer")
GSM8K = "openai/gsm8k"
"""Name of the published data set on the Hugging Face hub."""


def read_gsm8k(split: str, data_dir: str | os.PathLike[str] | None = None) -> list[Example]:
    """The examples of a split of the data set `gsm8k`, which is prepared first where it is not.

    Args:
        split: split in TensorFlow Datasets' notation, such as "train" or "train[:10%]".
        data_dir: root of prepared data sets; None is TensorFlow Datasets' own default.

    Raises:
        FileNotFoundError: it is not prepared, and there is neither a network nor a copy of the
            published files in the Hugging Face cache.
        ImportError: TensorFlow Datasets is not installed.
        ValueError: if the data set has no such split.
    """
    where = None if data_dir is None else os.fspath(data_dir)

    def find() -> Any:
        return import_tfds().builder("gsm8k", data_dir=where, file_format="array_record")

    builder = find()
    if not builder.is_prepared():
        try:
            prepare_gsm8k(f"{files.HUB}{GSM8K}", where)
        except OSError as error:
            # Another process may have been faster.
            if not find().is_prepared():
                raise FileNotFoundError(
                    f"data set 'gsm8k' is not prepared in {builder.data_path}, and cannot be: "
                    f"{error}"
                ) from error
        builder = find()
    records = builder.as_data_source(split=split)
    return [{name: record[name].decode("utf-8") for name in _FIELDS} for record in records]


def import_tfds() -> Any:
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
    source: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None
) -> pathlib.Path:
    """Prepares TensorFlow Datasets' `gsm8k` from the published files, without TensorFlow.

    The result is what the stock builder's `download_and_prepare` writes, with the splits `train`
    and `test` only, and is read back by `read_gsm8k(split, data_dir)`.

    Args:
        source: directory with the splits `train` and `test`, or `hub:OWNER/NAME`.
        data_dir: TensorFlow Datasets' root directory to write to; None is its own default.

    Returns:
        The directory of the prepared data set.
    """
    tfds = import_tfds()
    rows = {}
    for split in ("train", "test"):
        found = files.split_files(source, (split,), folders=("main",))
        rows[split] = files.read_table(found, _FIELDS, _with_one_answer)
    stock = tfds.text.Gsm8k

    class LocalGsm8k(stock, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        """The stock builder, reading files that are here already."""

        name = "gsm8k"

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(file) for split, file in plain.items()}

    with tempfile.TemporaryDirectory() as unpacked:  # The stock builder reads plain files only.
        plain = {split: pathlib.Path(unpacked) / f"{split}.jsonl" for split in rows}
        for split, file in plain.items():
            atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows[split]))
        where = None if data_dir is None else os.fspath(data_dir)
        builder = LocalGsm8k(data_dir=where, file_format="array_record")
        builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def _with_one_answer(example: Example) -> Example:
    if example["answer"].count("#### ") != 1:
        raise ValueError("field 'answer' must hold '#### ' exactly once")
    return example
