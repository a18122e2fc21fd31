"""results.jsonl and the outcomes of its rows, appended atomically row by row."""

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
    the file is opened again; another line that is no row is a `ValueError`. Outcomes lie in
    `outcomes/KEY.npz`: "correct" and "nfe", one entry per problem.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        self.path = self.directory / RESULTS
        self._log = files.JsonLog(self.path, "key")
        self.rows = {row["key"]: row for row in self._log.rows}

    def append(self, row: Row, correct: Float[np.ndarray, " n"], nfe: Int[np.ndarray, " n"]) -> Row:
        """Adds a row, durably, after its outcomes; returns it as it was written, with their file.

        Args:
            row: plain values with a "key" that is new here; NaN is written as null.
            correct, nfe: score and forwards of each problem.
        """
        if row["key"] in self.rows:
            raise ValueError(f"{self.path} has a row with key {row['key']} already")
        name = f"{OUTCOMES}/{row['key']}.npz"
        packed = io.BytesIO()
        np.savez_compressed(packed, correct=correct, nfe=nfe.astype(np.int32))
        files.atomic_write(self.directory / name, packed.getvalue())
        row = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in {**row, "outcomes": name}.items()
        }
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
