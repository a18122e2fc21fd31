"""Training curves, from the metrics files of training runs."""

import glob
import math
import pathlib
from collections.abc import Iterable
from typing import Any

from jax_unmask.runtime.files import read_json_rows
from jax_unmask.runtime.metrics import METRICS

_MOST_POINTS = 400
"""Most points of a curve: more are invisible, and make large pages."""


def find(patterns: Iterable[str]) -> list[pathlib.Path]:
    """Files of metrics: files, workdirs of training runs, or patterns of either.

    Raises:
        FileNotFoundError: a pattern matches nothing, or a directory that holds no metrics.
    """
    found = []
    for pattern in patterns:
        paths = sorted(pathlib.Path(path) for path in glob.glob(str(pattern)))
        paths = [path / METRICS if path.is_dir() else path for path in paths]
        if not paths or not all(path.is_file() for path in paths):
            raise FileNotFoundError(
                f"{pattern} names no training metrics; give files such as RUN/{METRICS}, workdirs "
                "of training runs, or patterns of either"
            )
        found += paths
    return found


def read_curves(paths: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """Steps and metrics of each run, thinned by means over neighbouring steps.

    Returns:
        Per run "name", "steps" [k] and "metrics": lists [k] of numbers, None where there is none.

    Raises:
        ValueError: a line is not an object with a "step"; names file and line.
    """
    return [_run(path) for path in dict.fromkeys(paths)]


def _run(path: pathlib.Path) -> dict[str, Any]:
    rows = read_json_rows(path, "step")
    width = max(-(-len(rows) // _MOST_POINTS), 1)
    groups = [rows[start : start + width] for start in range(0, len(rows), width)]
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {
        "name": path.parent.name if path.name == METRICS else path.stem,
        "steps": [group[-1]["step"] for group in groups],
        "metrics": {name: [_mean(group, name) for group in groups] for name in names},
    }


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    values = [float(value) for value in values if math.isfinite(value)]
    return float(f"{sum(values) / len(values):.4g}") if values else None
