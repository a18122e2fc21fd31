"""Base class of tasks that read their problems from files."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import ClassVar

from jax_unmask.settings import check_ranges, setting
from jax_unmask.tasks import files, sources
from jax_unmask.tasks.base import Example, Source, Split, Task
from jax_unmask.tasks.difficulty import Band


@dataclasses.dataclass(frozen=True)
class FileTask(Task):
    """A task over local files or a data set of the Hugging Face hub.

    A task sets `name` and `fields`, may change or refuse examples in `parse`, and defines the
    prompt, a right response, and the check of a response.

    Attributes:
        path: a directory with `train.jsonl` and `test.jsonl` (or `.jsonl.gz`, `.parquet`), one such
            file, or `hub:OWNER/NAME` for a data set of the Hugging Face hub.
        fields: fields that every example must have, as text.
        test_stem: name of the test file in a directory, without its suffix.
        test_only: there is no training set; a single file is the test set whatever its name.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    test_stem: ClassVar[str] = "test"
    test_only: ClassVar[bool] = False

    path: files.Path
    _: dataclasses.KW_ONLY
    difficulty: str | None = setting(
        None, "Training problems to use: FIELD:LOW..HIGH or FIELD:WORD|WORD, such as level:3..5."
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.difficulty is not None:
            Band.parse(self.difficulty)

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split, in the order of the files, whatever the seed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the task has no such split, or a file does not hold what it should.
        """
        del seed
        sources.check_split(split)
        if self.test_only:
            if split != "test":
                raise ValueError(
                    f"split={split!r}: task {self.name!r} is a test set and has no such split; "
                    "train on another task"
                )
            return self._read(files.table_file(self.path, self._test_file()))
        source = files.open_split(self.path, split, self._read, test_stem=self._test_file())
        return source if split == "test" else self._in_band(source)

    def parse(self, example: Example) -> Example:
        """The example of a record that has all fields; raises ValueError to refuse it."""
        return example

    def _test_file(self) -> str:
        """Name of the test file in a directory, without its suffix."""
        return self.test_stem

    def _read(self, path: pathlib.Path) -> Source:
        return files.read_table(path, self.fields, self.parse)

    def _in_band(self, source: Source) -> Source:
        """The examples of a training set that `difficulty` admits."""
        return source if self.difficulty is None else Band.parse(self.difficulty).select(source)
