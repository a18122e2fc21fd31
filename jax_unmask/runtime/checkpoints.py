"""Checkpoints of a run: asynchronous, atomic, verified on the way back in.

A checkpoint has three items, so that evaluation reads only what it needs: `params`, `state`
(optimiser, step, PRNG keys) and `data` (position of the data iterator). A fourth, `metrics`, has
the number that ranks checkpoints.

Orbax commits a checkpoint by renaming its directory, so that a killed process leaves no partial
one; but it reads array data back without a checksum. So each checkpoint carries the CRC-32 of its
files, written before the rename and compared before a restore; see `checksums`. Paths are those of
file systems: `gs://` and its like must be mounted.
"""

import base64
import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jax_unmask.runtime import checksums
from jax_unmask.runtime.files import Closing
from jax_unmask.settings import MAX_INT, Settings, setting

Params = Any
PyTree = Any
Json = Any  # Beside JSON, `data` may be bytes.

DIRECTORY = "checkpoints"
QUARANTINE = "corrupt_checkpoints"
_DELETED = "deleted"
ITEMS = ("params", "state", "data")

REMEDY = "It belongs to another configuration: restore with that one, or use a new workdir."

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Leaves out that Orbax warns of a directory that is only read."""

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Given directory is read only")

    library = logging.getLogger("absl")
    library.addFilter(is_other)
    try:
        yield
    finally:
        library.removeFilter(is_other)


class CheckpointError(ValueError):
    """A checkpoint is damaged, missing, or of another model."""


@dataclasses.dataclass(frozen=True)
class CheckpointSettings(Settings):
    """Settings of checkpoints: when they are saved, and which are kept."""

    is_exempt: ClassVar[bool] = True

    every: int = setting(100, "Training steps between checkpoints.", ge=1, le=MAX_INT)
    keep_latest: int = setting(2, "Latest checkpoints that are kept.", ge=1)
    keep_best: int = setting(
        1, "Best checkpoints that are kept beside them, if best_metric is given.", ge=0
    )
    best_metric: str = setting("", "Metric that ranks checkpoints; empty for none.")
    best_mode: Literal["max", "min"] = setting("max", "Whether large or small values are good.")
    grace_seconds: float = setting(
        0.0,
        "Seconds that the scheduler grants between SIGTERM and SIGKILL; a run that cannot finish "
        "and save its step in that time ends with a message. 0 for no limit.",
        ge=0,
        le=1e6,
    )


@dataclasses.dataclass(frozen=True)
class Restored:
    """The contents of the checkpoint of a step, see `Checkpoints.save`."""

    step: int
    params: Params
    state: PyTree
    data: Json
    lines: int | None  # Those of metrics.jsonl when it was saved.


class Checkpoints(Closing):
    """The checkpoints of one run, under `workdir/checkpoints/STEP`.

    Args:
        workdir: directory of the run.
        settings: which checkpoints to keep, and the metric that ranks them. With `keep_latest` of
            2 or more, a damaged one has another to fall back to.
        read_only: neither saves, nor deletes, nor moves damaged checkpoints aside; for evaluation,
            also during a training.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        settings: CheckpointSettings = CheckpointSettings(),
        *,
        read_only: bool = False,
    ) -> None:
        self.directory = pathlib.Path(workdir).absolute() / DIRECTORY
        self._settings = settings
        self.read_only = read_only
        self._quarantine = self.directory.parent / QUARANTINE
        if read_only and not self.directory.is_dir():
            raise CheckpointError(
                f"{self.directory.parent} has no directory {DIRECTORY!r}: expected the workdir of "
                "a training run"
            )
        if not read_only:
            self._delete()
            # Orbax reads these small files of every step at once and stops at a damaged one.
            for step in steps_in(self.directory):
                if problem := self._problem(step, items=("metrics",)):
                    self._set_aside(step, problem)
        with _without_warnings() if read_only else contextlib.nullcontext():
            self._manager = self._make_manager()
        self._saving: int | None = None

    def _make_manager(self) -> ocp.CheckpointManager:
        policies: list[Any] = [checkpoint_managers.LatestN(self._settings.keep_latest)]
        if self._settings.best_metric and self._settings.keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=self._goodness,
                    n=self._settings.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        return ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                # Retention is the policy's business; without best_fn Orbax writes no metrics.
                best_fn=self._goodness,
                # Renamed first, so that a kill in the deletion leaves nothing that looks damaged.
                todelete_subdir=None if self.read_only else _DELETED,
                save_interval_steps=0 if self.read_only else 1,
                cleanup_tmp_directories=not self.read_only,
                create=not self.read_only,
                read_only=self.read_only,
                lightweight_initialize=self.read_only,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_checksums,  # In process 0 alone.
                    barrier_sync_fn=self._barrier,
                ),
            ),
        )

    def _goodness(self, metrics: Mapping[str, float]) -> float:
        """A number that is larger for better checkpoints; NaN and missing values are worst."""
        value = metrics.get(self._settings.best_metric, math.nan)
        if math.isnan(value):
            return -math.inf
        return value if self._settings.best_mode == "max" else -value

    def save(
        self,
        step: int,
        *,
        params: Params,
        state: PyTree,
        data: Json = None,
        metrics: Mapping[str, float] | None = None,
        lines: int | None = None,
    ) -> bool:
        """Starts to save a checkpoint and returns once its arrays are copied.

        The caller may then donate or overwrite them. Flush the metrics before (`MetricWriter.sync`)
        so that no checkpoint is ahead of them.

        Args:
            step: the step just finished.
            params: tree of arrays.
            state: tree of arrays: optimiser state, step, typed PRNG keys.
            data: position of the data iterator, JSON or bytes, equal on all processes.
            metrics: metrics of this step; those ranked by must contain `best_metric`.
            lines: lines of metrics.jsonl, as process 0 knows.

        Returns:
            Whether it saved; False where a checkpoint of this step exists already.

        Raises:
            ValueError: the step is older than the latest checkpoint.
        """
        self.wait()
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise ValueError(
                f"cannot save step {step}: {self.directory} already has step {latest}. Restore "
                "before training on, or use another workdir."
            )
        if step == latest:
            return False
        self._saving, best = step, self._settings.best_metric
        ranked = {best: float(metrics[best])} if metrics and best in metrics else {}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(_encode(data) | {"lines": lines}),
                ),
                metrics=ranked,
                force=True,
            )
        return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says of errors in writing which checkpoint they are of, and what is left."""
        try:
            yield
        except (OSError, ValueError) as error:
            text = " ".join(str(error).split())[:500]
            if "No space left on device" in text:
                text = "No space left on device"
            whole = [step for step in steps_in(self.directory) if step != self._saving]
            raise CheckpointError(
                f"the checkpoint of step {self._saving} cannot be written to {self.directory}: "
                f"{text}. Whole are {_some(list(map(str, whole)))}; when the cause is mended, the "
                "same command goes on from the last one"
            ) from error

    def _write_checksums(self) -> None:
        """Runs in Orbax's thread when items are written and the rename is still to come."""
        (directory,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        checksums.write(directory, jax.process_index())

    def _barrier(self, key: str, timeout_ms: int) -> None:
        """Orbax's barrier: processes come to this one when they have written their arrays."""
        if jax.process_index() and "async_write_complete" in key:
            self._write_checksums()
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def wait(self) -> None:
        """Blocks until the save under way, if any, is committed; raises what it raised."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        self._delete()

    def _delete(self) -> None:
        """Deletes the checkpoints that are not kept; remains of a deletion that was killed too."""
        if not self.read_only and not jax.process_index():
            shutil.rmtree(self.directory / _DELETED, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The last step that has a checkpoint."""
        return max(self.steps(), default=None)

    def _best_step(self) -> int:
        """The step with the best `best_metric`; the later one of equals."""
        ranked = [
            (self._goodness(metrics), step)
            for step in self.steps()
            if (metrics := self._manager.metrics(step)) and self._settings.best_metric in metrics
        ]
        if not ranked:
            raise CheckpointError(
                f"no checkpoint in {self.directory} has the metric "
                f"{self._settings.best_metric!r}; ask for the latest, or a step by its number"
            )
        return max(ranked)[1]

    def restore(self, params: Params, state: PyTree) -> Restored | None:
        """Restores the latest checkpoint that is whole; damaged ones are moved aside.

        Args:
            params: tree of arrays or `jax.ShapeDtypeStruct`, with shardings where there is more
                than one device: the arrays that the checkpoint must have, and their shardings.
            state: the same for the training state.

        Returns:
            The content, bit for bit; None where the run has no checkpoint yet.

        Raises:
            CheckpointError: all checkpoints are damaged, also those that earlier starts moved
                aside; or this one holds other arrays (named).
        """
        wanted_params, wanted_state = _abstract(params), _abstract(state)
        steps = self.steps()
        for step in reversed(steps):
            if problem := self._problem(step, items=ITEMS):
                if self.read_only:
                    logger.warning(
                        "Checkpoint %s is damaged: %s", self.directory / str(step), problem
                    )
                else:
                    self._set_aside(step, problem)
                    self._manager.reload()
                continue
            self._check(step, "params", wanted_params, same_dtype=True)
            self._check(step, "state", wanted_state, same_dtype=True)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(wanted_params),
                    state=ocp.args.StandardRestore(wanted_state),
                    data=ocp.args.JsonRestore(),
                ),
            )
            return Restored(
                step=step,
                params=restored.params,
                state=restored.state,
                data=_decode(restored.data),
                lines=restored.data.get("lines"),
            )
        self.require_any()
        return None

    def require_any(self) -> None:
        """Raises a `CheckpointError` if the run had checkpoints, and all are damaged."""
        damaged = steps_in(self._quarantine)
        if self.read_only:
            damaged = self.steps()
        elif self.steps():
            return
        if damaged:
            raise CheckpointError(
                f"all checkpoints of {self.directory.parent} are damaged (steps {damaged}): "
                f"restore {DIRECTORY} from a backup, start in another workdir, or delete "
                f"{QUARANTINE} to begin again from step 0"
            )

    def restore_params(
        self, step: int | str = "latest", *, like: Params | None = None
    ) -> tuple[int, Params]:
        """Restores the parameters alone, without reading the optimiser's state.

        Args:
            step: the number of a step, "latest" or "best".
            like: tree of arrays or `jax.ShapeDtypeStruct` that gives dtypes (other than the saved
                ones are converted) and shardings; by default the tree as saved, on one device.

        Returns:
            The step and the parameters.

        Raises:
            CheckpointError: no such checkpoint, it is damaged, or it holds other arrays (named).
        """
        steps = self.steps()
        if step == "best":
            step = self._best_step()
        elif step == "latest":
            step = max(steps, default=-1)
        if step not in steps:
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}; it has "
                + (", ".join(map(str, steps)) if steps else "none")
            )
        if problem := self._problem(step, items=("params",)):
            others = [other for other in steps if other != step]
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} is damaged: {problem}. Other steps: "
                + (", ".join(map(str, others)) if others else "none")
            )
        if like is None:
            tree = self._manager.item_metadata(step).params.tree
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        wanted = _abstract(like)
        self._check(step, "params", wanted, same_dtype=False)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(wanted))
        )
        return step, restored.params

    def _problem(self, step: int, items: tuple[str, ...]) -> str | None:
        """Fault of a checkpoint's files, or None; the same on all processes."""
        problem = checksums.problem(
            self.directory / str(step),
            items=items,
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        if jax.process_count() > 1:
            damaged = multihost_utils.process_allgather(np.asarray(problem is not None)).any()
            if damaged and problem is None:
                problem = "another process found it damaged"
        return problem

    def _set_aside(self, step: int, problem: str) -> None:
        """Warns of a damaged checkpoint and moves it to the quarantine directory."""
        source = self.directory / str(step)
        target = self._quarantine / str(step)
        while target.exists():
            target = target.with_name(target.name + "+")
        logger.warning(
            "Checkpoint %s is damaged: %s. Moving it to %s and going back to the one before.",
            source,
            problem,
            target,
        )
        if jax.process_index() == 0:
            self._quarantine.mkdir(exist_ok=True)
            source.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside checkpoint {step}")

    def _check(self, step: int, item: str, wanted: PyTree, *, same_dtype: bool) -> None:
        saved = self._manager.item_metadata(step)[item].tree
        where = f"checkpoint {self.directory / str(step)}, {item}"
        _require_same(saved, wanted, where=where, same_dtype=same_dtype)

    def close(self) -> None:
        """Waits for the save under way and releases Orbax's threads."""
        self.wait()
        self._manager.close()


def steps_in(directory: pathlib.Path) -> list[int]:
    """Steps of the committed checkpoints under a directory, which need not exist."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _encode(data: Json) -> dict[str, Json]:
    """Bytes as Base64, for a JSON item."""
    if isinstance(data, bytes):
        return {"base64": base64.b64encode(data).decode()}
    return {"json": data}


def _decode(record: dict[str, Json]) -> Json:
    return base64.b64decode(record["base64"]) if "base64" in record else record["json"]


def _abstract(tree: PyTree) -> PyTree:
    """Shapes, types and shardings of a tree that Orbax is to restore.

    NumPy arrays stay, and are restored as NumPy arrays (JAX would cut 64-bit types to 32). Leaves
    without a sharding go to the first device.
    """
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def convert(leaf: Any) -> np.ndarray | jax.ShapeDtypeStruct:
        if isinstance(leaf, (np.ndarray, np.generic)):
            return np.asarray(leaf)
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"leaves must be arrays or jax.ShapeDtypeStruct, found {leaf!r}")
        sharding = getattr(leaf, "sharding", None) or single
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(convert, tree)


def _require_same(saved: PyTree, wanted: PyTree, *, where: str, same_dtype: bool) -> None:
    """Raises a `CheckpointError` that names the first array which differs from the wanted one.

    Args:
        saved: leaves as Orbax's metadata gives them; PRNG keys as their bits, with one dimension
            more.
        wanted: what `_abstract` returns.
        where: what is compared, for the message.
        same_dtype: whether another dtype is an error too.
    """
    found, asked = _leaves_by_path(saved), _leaves_by_path(wanted)
    if found.keys() != asked.keys():
        missing = sorted(asked.keys() - found.keys())
        extra = sorted(found.keys() - asked.keys())
        raise CheckpointError(
            f"{where}: it lacks {_some(missing)}, and has {_some(extra)} besides. {REMEDY}"
        )
    for path, leaf in asked.items():
        shape, saved_shape = tuple(leaf.shape), tuple(found[path].shape)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key:
            shape = jax.eval_shape(jax.random.key_data, leaf).shape
        if saved_shape != shape:
            raise CheckpointError(
                f"{where}: {path} has shape {saved_shape}, but {shape} is needed. {REMEDY}"
            )
        if same_dtype and not is_key and found[path].dtype != leaf.dtype:
            raise CheckpointError(
                f"{where}: {path} is {found[path].dtype}, but {leaf.dtype} is needed. {REMEDY}"
            )


def _leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves under names such as `opt/0/mu/kernel`, the same for tuples, classes and dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _some(names: list[str]) -> str:
    """The first few of many names."""
    if not names:
        return "nothing"
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
