"""results.jsonl and the outcomes of its rows, appended atomically row by row."""

from __future__ import annotations

import io
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jax_unmask.runtime import files

RESULTS = "results.jsonl"
OUTCOMES = "outcomes"

Row = dict[str, Any]


class ResultStore:
    """The rows of `directory/results.jsonl` by their "key", with the outcome of every problem.

    A row is on disk when `append` returns. A line that a crash left half written is cut off when
    the file is opened again. Outcomes lie in `outcomes/KEY.npz`: "correct" and "nfe", one entry per
    problem.

    Args:
        directory: where the files lie; made if missing.

    Raises:
        ValueError: a line of the file is not a row; names the line.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        self.path = self.directory / RESULTS
        self._log = files.JsonLog(self.path, "key")
        self.rows = {row["key"]: row for row in self._log.rows}

    def append(self, row: Row, correct: Float[np.ndarray, " n"], nfe: Int[np.ndarray, " n"]) -> Row:
        """Adds a row, durably; its outcomes are on disk before it is.

        Args:
            row: plain values with a "key" that is new here; NaN is written as null.
            correct: score of each problem.
            nfe: forwards of each problem.

        Returns:
            The row as it was written, with the "outcomes" file.
        """
        if row["key"] in self.rows:
            raise ValueError(f"{self.path} has a row with key {row['key']} already")
        name = f"{OUTCOMES}/{row['key']}.npz"
        packed = io.BytesIO()
        np.savez_compressed(packed, correct=correct, nfe=nfe.astype(np.int32))
        files.atomic_write(self.directory / name, packed.getvalue())
        row = {key: _plain(value) for key, value in {**row, "outcomes": name}.items()}
        self._log.append(row)
        self._log.sync()
        self.rows[row["key"]] = row
        return row


def read_outcomes(
    directory: str | os.PathLike[str], row: Mapping[str, Any]
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]] | None:
    """Score and forwards of each problem of a row; None where only the rows were kept."""
    name = row.get("outcomes")
    path = pathlib.Path(directory) / str(name)
    if not name or not path.exists():
        return None
    with np.load(path) as packed:
        return packed["correct"], packed["nfe"]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
