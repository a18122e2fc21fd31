"""The record of a run: metrics.jsonl always, TensorBoard, and Weights & Biases when asked.

Results of computation (rewards, losses, NFE) go to `metrics.jsonl`, which is byte for byte the same
for a run that was killed and resumed. Seconds and rates differ from run to run and go to
`timings.jsonl`.
"""

import dataclasses
import importlib
import logging
import math
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from jax_unmask.runtime import files
from jax_unmask.settings import MAX_INT, Settings, setting

Scalar = bool | int | float | str | np.generic | np.ndarray | jax.Array

METRICS = "metrics.jsonl"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LogSettings(Settings):
    """Settings of logs: outputs of metrics other than metrics.jsonl."""

    is_exempt: ClassVar[bool] = True

    every: int = setting(1, "Training steps between records.", ge=1, le=MAX_INT)
    tensorboard: bool = setting(True, "Also write TensorBoard files.")
    wandb: bool = setting(False, "Also write to Weights & Biases.")


class StepLog(files.JsonLog):
    """An append-only file of one JSON object per step; lines after `resume_step` are cut off.

    Attributes:
        lines: how many it has. Where `lines` is given, it must have as many up to `resume_step`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, resume_step: int, lines: int | None = None
    ) -> None:
        super().__init__(path, "step", int, keep=lambda row: row["step"] <= resume_step)
        self.lines = len(self.rows)
        if lines is not None and self.lines != lines:
            raise ValueError(
                f"{self.path} has {self.lines} lines of steps up to {resume_step}, but {lines} "
                "were written before the checkpoint of that step. Restore it from a backup, or "
                "delete it to continue without the record of these steps"
            )
        self._last_step = self.rows.pop()["step"] if self.rows else None
        self.rows.clear()

    def write(self, step: int, values: Mapping[str, bool | int | float | str]) -> None:
        """Appends one line. Steps must increase from line to line."""
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"{self.path}: step {step} comes after step {self._last_step}. Write each step "
                "once, in order, with all its values together."
            )
        self.append({"step": step, **values})
        self._last_step = step
        self.lines += 1


class TensorBoard:
    """Scalars as TensorBoard event files, through tensorboardX (which needs no TensorFlow)."""

    def __init__(self, directory: str | os.PathLike[str], *, resume_step: int | None) -> None:
        import tensorboardX  # imported late: it takes most of a second.

        self._writer = tensorboardX.SummaryWriter(
            str(directory),
            # TensorBoard then hides what an earlier process wrote of the repeated steps.
            purge_step=None if resume_step is None else resume_step + 1,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def import_wandb() -> Any:
    """The client of Weights & Biases.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "log.wandb=True, but wandb is not installed: `pip install 'jax_unmask[wandb]'`, or set "
            "log.wandb=False"
        ) from error


class WeightsAndBiases:
    """Scalars to Weights & Biases; a workdir keeps its run id, for runs that are resumed.

    Its environment variables say where to: WANDB_MODE=offline writes to the workdir alone, for
    `wandb sync`.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, project: str, config: Mapping[str, Any]
    ) -> None:
        wandb = import_wandb()
        id_file = pathlib.Path(workdir) / "wandb_run_id.txt"
        if not id_file.exists():
            files.atomic_write(id_file, secrets.token_hex(4) + "\n")
        self._run = wandb.init(
            project=project,
            config=dict(config),
            dir=str(workdir),
            id=id_file.read_text().strip(),
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Does nothing: wandb uploads from another process."""

    def close(self) -> None:
        self._run.finish()


class MetricWriter(files.Closing):
    """Writes a run's metrics on process 0 and nothing on the others.

    Call `sync` before saving a checkpoint of step k: then a run that resumes from k finds the lines
    up to k on disk. Open the writer with `resume_step=k` after restoring one.

    Args:
        workdir: directory of the run; receives metrics.jsonl, timings.jsonl and tensorboard/.
        resume_step: step of the checkpoint that the run continues from, 0 for a fresh start; lines
            of later steps are cut off.
        lines: lines of metrics.jsonl that were written until then, as the checkpoint says; None
            where that is not known.
        tensorboard: whether to write TensorBoard event files too.
        sinks: further receivers; `write` gives them the numeric values of each step.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        resume_step: int,
        lines: int | None = None,
        tensorboard: bool = LogSettings.tensorboard,
        sinks: tuple[WeightsAndBiases, ...] = (),
    ) -> None:
        self._is_writer = jax.process_index() == 0
        self._sinks: list[TensorBoard | WeightsAndBiases] = []
        if not self._is_writer:
            return
        directory = pathlib.Path(workdir)
        path = directory / METRICS
        if lines and not path.exists():
            message = "%s is gone, and with it the record of steps up to %d."
            logger.warning(message, path, resume_step)
            lines = None
        self._metrics = StepLog(path, resume_step=resume_step, lines=lines)
        self._timings = StepLog(directory / "timings.jsonl", resume_step=resume_step)
        if tensorboard:
            self._sinks.append(TensorBoard(directory / "tensorboard", resume_step=resume_step))
        self._sinks.extend(sinks)

    @property
    def lines(self) -> int:
        """Lines of metrics.jsonl; 0 in processes that do not write it."""
        return self._metrics.lines if self._is_writer else 0

    def write(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Writes what a step computed: reproducible values only, all of a step in one call.

        Args:
            step: the step that the values belong to.
            values: scalars; arrays must have one element. NaN and infinities, which JSON cannot
                hold, are written as the strings that `float` reads: "nan", "inf", "-inf".
        """
        if self._is_writer:
            self._write(self._metrics, step, values)

    def write_timings(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Writes what differs from run to run: seconds, rates, memory."""
        if self._is_writer:
            self._write(self._timings, step, values)

    def _write(self, lines: StepLog, step: int, values: Mapping[str, Scalar]) -> None:
        plain = {key: _to_json(key, value) for key, value in values.items()}
        lines.write(step, plain)
        # float() also reads back the strings that stand for NaN and infinities.
        numbers = {
            key: float(value) for key, value in plain.items() if not isinstance(values[key], str)
        }
        for sink in self._sinks:
            sink.write(step, numbers)

    def sync(self) -> None:
        """Blocks until everything written so far is on disk. Cheap enough for every checkpoint."""
        if self._is_writer:
            self._metrics.sync()
            self._timings.sync()
            for sink in self._sinks:
                sink.flush()

    def close(self) -> None:
        """Syncs and closes all files. May be called twice."""
        if self._is_writer:
            self._metrics.close()
            self._timings.close()
            for sink in self._sinks:
                sink.close()
            self._sinks.clear()


def _to_json(key: str, value: Scalar) -> bool | int | float | str:
    """A plain Python scalar for a value."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        if value.size != 1:
            raise ValueError(f"metric {key!r} must be a scalar, has shape {value.shape}")
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"metric {key!r} must be a number, a bool or a string, is {value!r}")
