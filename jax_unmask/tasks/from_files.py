"""Base class of tasks that read their problems from files."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import ClassVar

from jax_unmask.settings import SettingError, check_ranges, setting
from jax_unmask.tasks import files, sources
from jax_unmask.tasks.base import Example, Source, Split, Task
from jax_unmask.tasks.difficulty import Band

_STEMS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation|valid|val|dev",),
    "test": ("test",),
}


@dataclasses.dataclass(frozen=True)
class FileTask(Task):
    """A task over local files or a data set of the Hugging Face hub.

    A task sets `name` and `fields`, may change or refuse examples in `parse`, and defines the
    prompt, a right response, and the check of a response. All problems of the training files are
    for training unless `hold_out` says otherwise.

    Attributes:
        path: a directory in the layout of the published data set, or with `train.jsonl` and
            `test.jsonl` (or `.json`, `.parquet`, gzipped), one such file, or
            `hub:OWNER/NAME[/FOLDER]` for a data set of the Hugging Face hub. None is `hub`.
        fields: fields that every example must have, as text.
        hub: name of the published data set on the Hugging Face hub, if there is one.
        folders: the folder to take where the data set has several, as of `files.split_files`.
        test_stem: name of the test file in a directory, without its suffix.
        test_only: there is no training set; a single file is the test set whatever its name.
        place_field: field that takes the file and the line of an example, for messages.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    hub: ClassVar[str | None] = None
    folders: ClassVar[tuple[str, ...]] = ()
    test_stem: ClassVar[str] = "test"
    test_only: ClassVar[bool] = False
    place_field: ClassVar[str | None] = None

    path: files.Path | None = None
    _: dataclasses.KW_ONLY
    difficulty: str | None = setting(
        None, "Training problems to use: FIELD:LOW..HIGH or FIELD:WORD|WORD, such as level:3..5."
    )
    test_path: str | None = setting(
        None, "Where the test split lies, in the forms of `path`, if elsewhere."
    )
    hold_out: int = setting(
        0, "Every so-many-th training problem is for validation instead; 0 trains on all.", ge=0
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.path is None and self.hub is None:
            raise SettingError(
                "path",
                None,
                f"task {self.name!r} reads its problems from files",
                "Give a directory with train.jsonl and test.jsonl (--data=DIR, or NAME:DIR)",
            )
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
        if self.test_only and split != "test":
            raise ValueError(
                f"split={split!r}: task {self.name!r} is a test set and has no such split; "
                "train on another task"
            )
        if split == "test" or not self.hold_out:
            source = self._load(split)
        else:
            source = sources.hold_out(self._load("train"), split, self.hold_out)
        if split == "train" and self.difficulty is not None:
            return Band.parse(self.difficulty).select(source)
        return source

    def parse(self, example: Example) -> Example:
        """The example of a record that has all fields; raises ValueError to refuse it."""
        return example

    def _stems(self, split: Split) -> Sequence[str]:
        """Regular expressions for the names of a split's files, the preferred one first."""
        own = (self.test_stem,) if split == "test" else ()
        return (*own, *_STEMS[split], *(_STEMS["train"] if self.test_only else ()))

    def _files(self, split: Split) -> list[pathlib.Path]:
        path = self.path if self.path is not None else f"{files.HUB}{self.hub}"
        if split == "test" and self.test_path is not None:
            path = self.test_path
        try:
            found = files.split_files(
                path, self._stems(split), name=self.name, folders=self.folders
            )
        except FileNotFoundError as error:
            if split != "validation":
                raise
            raise FileNotFoundError(
                f"{error}; or hold some training problems out, with the task's setting hold_out=15"
            ) from error
        if found == [files.local(path)] and not self.test_only and path != self.test_path:
            self._check_single(found[0], split)
        return found

    def _check_single(self, file: pathlib.Path, split: Split) -> None:
        """Refuses a single file whose name says that it is another split."""
        words = set(re.split(r"[^a-z]+", file.name.lower()))
        stem = file.name.partition(".")[0]
        if any(re.fullmatch(each, stem, re.IGNORECASE) for each in self._stems(split)):
            return
        kinds = {"test", "validation"} & words or (
            {"test"} if stem == self.test_stem else {"train"}
        )
        if split not in kinds:
            raise ValueError(
                f"path={str(self.path)!r} is a {' and '.join(sorted(kinds))} file and holds no "
                f"split {split!r}; give a directory with {self._stems(split)[0]}.jsonl"
            )

    def _load(self, split: Split) -> Source:
        """The problems of the files of a split."""
        return files.read_table(self._files(split), self.fields, self._read, self.place_field)

    def _read(self, example: Example) -> Example:
        """The example of a record, checked as far as that costs little."""
        return self.parse(example)
