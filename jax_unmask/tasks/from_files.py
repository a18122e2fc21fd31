"""The base of tasks that read their problems from files: what each does not have to say itself."""

from __future__ import annotations

import abc
import os
import pathlib
from collections.abc import Sequence

from jax_unmask.tasks import files, prompts, sources
from jax_unmask.tasks.base import Example, Source, Split
from jax_unmask.tasks.difficulty import Band


class FileTask(abc.ABC):
    """A task over local files or a data set of the Hugging Face hub.

    A task sets `name` and `fields`, may refuse examples in `verify`, and says how to prompt, what a
    right response is, and how to check one.

    Args:
        path: a directory with `train.jsonl` and `test.jsonl` (or `.jsonl.gz`, `.parquet`), one such
            file, or `hub:OWNER/NAME` for a data set of the Hugging Face hub.
        prompt_style: "training" or "evaluation", for tasks whose published prompts differ.
        difficulty: part of the training set to use, such as "level:3..5"; see `difficulty.Band`.

    Attributes:
        fields: fields that every example must have, as text.
        test_stem: name of the test file in a directory, without its suffix.
        test_only: there is no training set; a single file is the test set whatever its name.
    """

    name: str
    fields: tuple[str, ...]
    test_stem = "test"
    test_only = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prompt_style: prompts.PromptStyle = "training",
        difficulty: str | None = None,
    ) -> None:
        prompts.check_style(prompt_style)
        self._path = path
        self._style = prompt_style
        self._band = None if difficulty is None else Band.parse(difficulty)

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """The problems of a split, in the order of the files; the seed plays no part.

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
            return self._open(files.test_file(self._path, self.test_stem))
        source = sources.local_split(self._path, split, self._open, test_stem=self.test_stem)
        return source if self._band is None or split == "test" else self._band.select(source)

    def verify(self, example: Example) -> None:  # noqa: B027 - most tasks need nothing here.
        """Raises ValueError if an example that has all fields still cannot be used."""

    @abc.abstractmethod
    def prompt(self, example: Example) -> str | prompts.Messages:
        """The prompt; see `jax_unmask.tasks.prompts` for the opened response."""

    @abc.abstractmethod
    def target(self, example: Example) -> str:
        """A right response."""

    @abc.abstractmethod
    def check(self, example: Example, response: str) -> float:
        """Score of a response in [0, 1]."""

    def check_batch(self, examples: Sequence[Example], responses: Sequence[str]) -> list[float]:
        """`check` of each response."""
        return [
            self.check(example, response)
            for example, response in zip(examples, responses, strict=True)
        ]

    def _open(self, path: pathlib.Path) -> Source:
        return files.open_table(path, self.fields, verify=self.verify)
