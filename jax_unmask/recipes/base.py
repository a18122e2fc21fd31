"""What every recipe offers to the training loop, and what several recipes share."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict

from jax_unmask.learners import optim
from jax_unmask.learners.state import TrainState
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks.data import BatchIterator

Metrics = Mapping[str, Any]


class Recipe(Protocol):
    """A way to train: builds its parts from a config, then takes steps.

    Everything random in a step follows from the state's key and step and from the batch, so a run
    that is resumed from (state, position of the data) continues exactly.
    """

    def init(self) -> TrainState:
        """The state before the first step."""
        ...

    def data(self) -> BatchIterator:
        """Training batches from the start; its position can be saved and set."""
        ...

    def step(
        self, state: TrainState, batch: Any, timer: Timer
    ) -> tuple[TrainState, Metrics]:
        """One training step.

        Args:
            state: the training state; may be donated.
            batch: the next batch of `data`.
            timer: takes the seconds of each phase of the step.

        Returns:
            The new state, and scalar metrics (host numbers or device arrays).
        """
        ...

    def finish(self, state: TrainState, workdir: pathlib.Path) -> None:
        """Exports what was trained, and evaluates it where the config asks for that."""
        ...


def build_optimizer(config: ConfigDict, steps_per_iteration: int = 1) -> Any:
    """The optimiser of `config.optimizer`, with its schedule over the whole run."""
    return optim.make_optimizer(
        total_steps=config.train.steps * steps_per_iteration,
        **dict(config.optimizer),
    )
