"""Prompts padded to one of a few lengths instead of the longest of all."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from jax_unmask.rollout.trajectory import Prompts
from jax_unmask.runtime.placement import Placement


def by_length(
    mask: Bool[np.ndarray, "n P"], buckets: Sequence[int]
) -> list[tuple[int, Int[np.ndarray, " m"]]]:
    """Lengths (ascending) and the indices of the prompts for which each is the shortest that fits.

    Args:
        mask: mask of left-padded prompts.
        buckets: lengths other than P; those of P and more are never needed.
    """
    lengths, longest = mask.sum(axis=1), mask.shape[1]
    ladder = np.array(sorted({*(size for size in buckets if size < longest), longest}))
    step = np.searchsorted(ladder, lengths)
    return [(int(ladder[k]), np.flatnonzero(step == k)) for k in np.unique(step)]


def trimmed(prompts: Prompts, buckets: Sequence[int], placement: Placement) -> Prompts:
    """A process's batch (NumPy), padded to the shortest length in which its longest prompt fits.

    The prompts of the other processes of the placement count too.
    """
    if not buckets:
        return prompts
    width = by_length(np.asarray(prompts.mask), buckets)[-1][0]
    width = int(placement.gather(np.asarray([width])).max())
    tokens, mask = prompts.tokens[:, -width:], prompts.mask[:, -width:]
    return dataclasses.replace(prompts, tokens=tokens, mask=mask)
