"""Comparing what two runs left behind, bit by bit."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jax_unmask.runtime import checksums
from jax_unmask.runtime.checkpoints import DIRECTORY, ITEMS, CheckpointError, Checkpoints
from jax_unmask.runtime.checksums import IGNORED

METRICS = "metrics.jsonl"
WEIGHTS = "*.safetensors"


def differences(left: str | os.PathLike[str], right: str | os.PathLike[str]) -> list[str]:
    """What is not the same in two workdirs; nothing, if both runs computed the same.

    Compared are `metrics.jsonl`; the last checkpoint: step, parameters, optimiser, PRNG keys and
    position of the data; and all exported weights. Times and logs differ from run to run.

    Args:
        left: the workdir of a run.
        right: the workdir of another, not a directory within the first.

    Returns:
        Names of the files and arrays that differ, or exist on one side only.

    Raises:
        CheckpointError: a run has no checkpoint, or a damaged one.
        OSError: a run has no metrics.
    """
    left, right = pathlib.Path(left), pathlib.Path(right)
    found = []
    if (left / METRICS).read_bytes() != (right / METRICS).read_bytes():
        found.append(METRICS)
    ours, theirs = contents(left), contents(right)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs or not _same(ours[name], theirs[name]):
            found.append(f"{DIRECTORY}: {name}")
    exported = {
        path.relative_to(workdir) for workdir in (left, right) for path in workdir.rglob(WEIGHTS)
    }
    for path in sorted(exported):
        in_left, in_right = left / path, right / path
        on_both_sides = in_left.is_file() and in_right.is_file()
        if not on_both_sides or in_left.read_bytes() != in_right.read_bytes():
            found.append(str(path))
    return found


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
