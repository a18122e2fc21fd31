"""Comparing what two runs left behind, bit by bit."""

import json
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jax_unmask.runtime import checksums
from jax_unmask.runtime.checkpoints import DIRECTORY, ITEMS, CheckpointError, Checkpoints
from jax_unmask.runtime.checksums import IGNORED

METRICS = "metrics.jsonl"
RESULTS = "results.jsonl"
_CLOCKS = ("seconds_per_sequence", "tokens_per_second", "compile_seconds")
WEIGHTS = "*.safetensors"


def differences(left: str | os.PathLike[str], right: str | os.PathLike[str]) -> list[str]:
    """Differences between two workdirs; none, if both runs computed the same.

    Compared are, also of the stages of a curriculum, `metrics.jsonl`; the last checkpoint: step,
    parameters, optimiser, PRNG keys and position of the data; all exported weights; and of
    evaluations the rows of `results.jsonl`, outcomes, pictures, `summary.md` and `report.html`, but
    for seconds, days and the names of the workdirs. Timings and logs differ from run to run.

    Args:
        left: the workdir of a run.
        right: the workdir of another, not a directory within the first.

    Returns:
        Names of the files and arrays that differ, or exist on one side only.

    Raises:
        CheckpointError: a run has no checkpoint, or a damaged one.
        OSError: a run has neither metrics nor results.
    """
    left, right = pathlib.Path(left), pathlib.Path(right)
    places = {place.relative_to(each) for each in (left, right) for place in _places(each)}
    found = []
    for place in sorted(places):
        ours, theirs = left / place, right / place
        names = _files(ours, theirs)
        found += [str(place / name) for name in names if not _is_equal(place / name, left, right)]
        if (ours / METRICS).exists() or (ours / DIRECTORY).exists():
            ours, theirs = contents(ours), contents(theirs)
            for name in sorted(ours.keys() | theirs.keys()):
                if name not in ours or name not in theirs or not _same(ours[name], theirs[name]):
                    found.append(f"{place / DIRECTORY}: {name}")
    exported = {
        path.relative_to(workdir) for workdir in (left, right) for path in workdir.rglob(WEIGHTS)
    }
    return [*found, *(str(path) for path in sorted(exported) if not _is_equal(path, left, right))]


def _places(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The directories of a run that hold metrics or results: its own, and those of its stages."""
    files = [path for name in (METRICS, RESULTS) for path in workdir.glob(name)]
    files += [path for name in (METRICS, RESULTS) for path in workdir.glob(f"*/{name}")]
    if not files:
        raise FileNotFoundError(f"{workdir} has neither {METRICS} nor {RESULTS}")
    return [path.parent for path in files]


def _files(left: pathlib.Path, right: pathlib.Path) -> list[str]:
    """Names of the files of two runs and their evaluations that are compared."""
    names = {
        str(path.relative_to(place))
        for place in (left, right)
        for pattern in (METRICS, RESULTS, "summary.md", "report.html", "*.png", "outcomes/*")
        for path in place.glob(pattern)
    }
    return sorted(names)


def _is_equal(name: pathlib.Path, left: pathlib.Path, right: pathlib.Path) -> bool:
    found: list[Any] = []
    for workdir in (left, right):
        path = workdir / name
        if not path.is_file():
            return False
        data = path.read_bytes()
        if name.name == RESULTS:
            found.append(without_clocks(data.decode(), workdir))
        elif name.suffix in (".md", ".html"):
            found.append(_without_times(data.decode(), workdir))
        else:
            found.append(data)
    return found[0] == found[1]


def without_clocks(results: str, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of results without what a clock measured, and without the name of their workdir."""
    rows = [json.loads(line) for line in results.replace(str(workdir), "WORKDIR").splitlines()]
    return [{name: row[name] for name in row if name not in _CLOCKS} for row in rows]


def _without_times(text: str, workdir: pathlib.Path) -> str:
    """A report without seconds (`ms` in its data, the last but one column of tables) and days."""
    text = text.replace(str(workdir), "WORKDIR").replace("\\n", "\n")
    for named in (f'["run","{workdir.name}"]', f'"name":"{workdir.name}"'):  # Run, and its curves.
        text = text.replace(named, "")
    text = re.sub(r'"ms": ?[-+.\de]+|report of \d{4}-\d\d-\d\d', "", text)
    text = re.sub(r"(?m)[-+.\de]+([ |]+\d+\.\d\d(?: \|)?)$", r"\1", text)
    return re.sub(r"[─\s]+", " ", text)  # Columns are as wide as what is in them.


def contents(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Everything that the latest checkpoint of a run says of the future.

    Args:
        workdir: its workdir.

    Returns:
        Arrays as saved under names such as "params/layer/kernel" and "state/opt_state/0/mu", PRNG
        keys as their bits; "data", the files with the position of the data; and "step".

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise CheckpointError(f"{checkpoints.directory} has no checkpoint")
        directory = checkpoints.directory / str(step)
        if problem := checksums.problem(directory, items=ITEMS):
            raise CheckpointError(f"checkpoint {directory} is damaged: {problem}")
    position = [path for path in (directory / "data").iterdir() if path.name not in IGNORED]
    found: dict[str, Any] = {"step": step}
    found["data"] = [path.read_bytes() for path in sorted(position)]
    with ocp.StandardCheckpointer() as reader:
        for item in ("params", "state"):
            # As NumPy arrays, because the devices that the run had need not be here.
            shapes = reader.metadata(directory / item).item_metadata.tree
            like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
            # PRNG keys come as their bits.
            tree = reader.restore(directory / item, like)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                found[f"{item}/{name}"] = np.asarray(leaf)
    return found


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        is_like = left.shape == right.shape and left.dtype == right.dtype
        # Bytes, because NaN differs from itself and 0.0 equals -0.0.
        return is_like and left.tobytes() == right.tobytes()
    return left == right
