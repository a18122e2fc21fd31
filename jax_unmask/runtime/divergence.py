"""Detects that a training's numbers are not finite any more, without waiting for the devices."""

from __future__ import annotations

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
# Verdicts that are kept on the devices; older ones are of steps that are long done.
_KEPT = 64


class Divergence:
    """Remembers the first step after which a number of parameters, optimiser or metrics was lost.

    `see` starts a small program where the arrays are and waits for nothing.
    """

    def __init__(self) -> None:
        self._verdicts: collections.deque[tuple[int, Any]] = collections.deque()
        self._first: int | None = None

    def see(self, step: int, tree: Tree) -> None:
        """Notes whether the floating-point leaves of a tree, arrays or numbers, are finite."""
        places: dict[frozenset[Any], list[jax.Array]] = {}
        finite = True
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, jax.Array):
                finite &= bool(np.isfinite(leaf).all())
            elif jnp.issubdtype(leaf.dtype, jnp.inexact):
                places.setdefault(frozenset(leaf.sharding.device_set), []).append(leaf)
        self._verdicts.append((step, finite))
        self._verdicts.extend((step, _all_finite(leaves)) for leaves in places.values())
        self._read(_KEPT)

    def first_step(self) -> int | None:
        """The first step that lost numbers, or None; waits for the steps that were seen."""
        self._read(0)
        return self._first

    def _read(self, kept: int) -> None:
        old = [self._verdicts.popleft() for _ in range(len(self._verdicts) - kept)]
        lost = [step for step, finite in jax.device_get(old) if not finite]
        self._first = min(lost, default=None) if self._first is None else self._first


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


@jax.jit
def _lost(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.sum(~jnp.isfinite(leaf)) for leaf in leaves]


def lost_numbers(tree: Tree) -> tuple[int, int]:
    """How many of a tree's floating-point numbers are not finite, and how many there are."""
    leaves = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    lost = sum(map(int, jax.device_get(_lost(leaves))))
    return lost, sum(math.prod(leaf.shape) for leaf in leaves)
