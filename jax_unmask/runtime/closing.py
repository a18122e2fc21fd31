"""`with` for objects that have a `close`."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Self


class Closing(abc.ABC):
    """An object that closes when its `with` block ends, by an exception too."""

    @abc.abstractmethod
    def close(self) -> None:
        """Finishes pending work and releases resources."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
