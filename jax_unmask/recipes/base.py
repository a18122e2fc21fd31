"""The interface of recipes to the training loop, and functions that several of them share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict

from jax_unmask import denoisers
from jax_unmask.denoisers import DenoiserConfig, Tokenizer
from jax_unmask.environment.bundle import Bundle
from jax_unmask.learners import optim
from jax_unmask.learners.state import TrainState
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks import data
from jax_unmask.tasks.base import Task

Metrics = Mapping[str, Any]

# Larger splits are those of tasks that generate their problems, up to 2**31 of them.
_SCANNED_WHOLE, _SCANNED_ELSE = 100_000, 256


class Recipe(Protocol):
    """A way to train: builds its parts from a config, then takes steps.

    Everything random in a step follows from the state's key and step and from the batch, so a run
    that is resumed from (state, position of the data) continues exactly.

    Attributes:
        shown: names of the metrics that the progress bar shows.
    """

    shown: tuple[str, ...]

    def init(self) -> TrainState:
        """The state before the first step.

        The recipe frees loaded weights that no step needs beside the state.
        """
        ...

    def like(self) -> TrainState:
        """Shapes and places of the arrays of `init`, for a run that restores its state instead.

        The recipe frees the same weights as `init` does, and makes none.
        """
        ...

    def data(self) -> data.BatchIterator:
        """Training batches from the start; its position can be saved and set.

        Raises:
            ValueError, OSError: the data cannot be read, or hold what does not fit the config.
        """
        ...

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        """One training step.

        Args:
            state: the training state; may be donated.
            batch: the next batch of `data`.
            timer: takes the seconds of each phase of the step.

        Returns:
            The new state, and scalar metrics (host numbers or device arrays).
        """
        ...

    def flops(self, metrics: Mapping[str, float]) -> float:
        """Matrix products that the maths of a step needs, over all devices, in operations.

        A forward that a row needs counts once, a forward with its gradient three times; what is
        computed again to save memory, or for rows that are done, counts nothing.

        Args:
            metrics: the metrics of that step, on the host.
        """
        ...

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        """Exports what was trained, and returns it for an evaluation."""
        ...


def build_optimizer(config: ConfigDict, steps_per_iteration: int = 1) -> Any:
    """The optimiser of `config.optimizer`, with its schedule over the whole run."""
    settings = optim.OptimizerSettings(**dict(config.optimizer))
    return settings.build(config.train.steps * steps_per_iteration)


def export_denoiser(config: ConfigDict, bundle: Bundle, workdir: pathlib.Path) -> Bundle:
    """Saves a trained denoiser in Hugging Face format.

    Args:
        config: the config; `export` names the directory, by default `model/` of the workdir.
        bundle: the denoiser as trained, with its tokenizer and task.
        workdir: the directory of the run.

    Returns:
        The bundle without a name, for evaluation.
    """
    directory = pathlib.Path(config.export or workdir / "model")
    denoisers.save_pretrained(directory, bundle.denoiser, bundle.params, bundle.tokenizer)
    return dataclasses.replace(bundle, name="")


def check_fits(denoiser: DenoiserConfig, prompt_length: int, gen_length: int) -> None:
    """Refuses sequences that are longer than the denoiser was made for.

    Raises:
        ConfigError: prompt and canvas together exceed `denoiser.max_length`.
    """
    total = prompt_length + gen_length
    if total > denoiser.max_length:
        raise ConfigError(
            "task.prompt_length",
            prompt_length,
            f"with a canvas of {gen_length} that makes {total} tokens, more than the "
            f"{denoiser.max_length} that the denoiser was made for",
            "Lower it or gen_length",
        )


def training_batches(
    task: Task, tokenizer: Tokenizer, settings: data.BatchSettings, placement: Placement
) -> data.BatchIterator:
    """This process's shard of the batches of a task's training split, without end.

    Every example is encoded once before, so that one over its budget stops no run half-way. Of a
    task that generates its problems, the first ones stand for all.

    Args:
        task: the task.
        tokenizer: the denoiser's tokenizer.
        settings: shapes and order of the batches, over all processes.
        placement: determines which rows this process reads.

    Raises:
        ValueError: an example does not fit; the message names it.
    """
    examples = len(task.source("train", seed=settings.seed))
    limit = examples if examples <= _SCANNED_WHOLE else _SCANNED_ELSE
    once = dataclasses.replace(
        settings, batch_size=128, num_epochs=1, shuffle=False, limit=limit or None
    )
    for _ in data.batches(task, "train", tokenizer, once):
        pass
    shard = dataclasses.replace(settings, shard_index=placement.feed, shard_count=placement.feeds)
    return data.batches(task, "train", tokenizer, shard)
