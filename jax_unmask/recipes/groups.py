"""Groups of rollouts: the choice of those that are trained, and the lengths of their texts."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jax_unmask.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class GroupFilter(Settings):
    """The groups that are trained: those of equal rewards never are."""

    low: float = setting(0.2, "Lowest accuracy of a group that is trained.", ge=0, le=1)
    high: float = setting(0.8, "Highest accuracy of a group that is trained.", ge=0, le=1)
    rounds: int = setting(
        4, "Most batches of prompts that are rolled out to fill a batch of groups.", ge=1
    )

    def check(self) -> None:
        self.require_at_most("low", "high")


class ChosenGroups(NamedTuple):
    """The groups of an update, always the same number of them.

    Attributes:
        group: which groups, of all that were rolled out.
        kept: False where too few were kept; such a group counts for nothing.
    """

    group: Int[np.ndarray, " P"]
    kept: Bool[np.ndarray, " P"]


def choose_groups(kept: Bool[np.ndarray, " N"], wanted: int) -> ChosenGroups:
    """The first `wanted` groups that are kept, filled up with others."""
    order = np.argsort(~kept, kind="stable")[:wanted]
    return ChosenGroups(order, kept[order])


def text_lengths(
    tokens: Int[np.ndarray, "B L"], step_map: Int[np.ndarray, "B L"], end_ids: tuple[int, ...]
) -> Int[np.ndarray, " B"]:
    """Filled tokens of each text, its end included."""
    ends: Bool[np.ndarray, "B L"] = np.isin(tokens, end_ids)
    before_end = np.cumsum(ends, axis=1) - ends == 0
    return (before_end & (step_map >= 0)).sum(axis=1)
