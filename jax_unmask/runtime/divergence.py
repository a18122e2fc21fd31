"""Detects that a training is lost: its numbers are not finite any more, or its last steps idle."""

import collections
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
logger = logging.getLogger(__name__)
# Verdicts that are kept on the devices; older ones are of steps that are long done.
_KEPT = 64
# The end of a run: this share of its records, and at least so many.
_END_SHARE, _END_RECORDS = 0.1, 3
# A supervised loss, in nats per token, that ends so many times above its start (or 1) is no loss of
# a model that learned: random answers cost a dozen nats.
_LOSS_GROWTH = 10


class Untrained(ValueError):
    """A training came to its end, but its last steps, or all of them, updated nothing."""


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
    """Counts of a tree's floating-point numbers: those that are not finite, and all."""
    leaves = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    lost = sum(map(int, jax.device_get(_lost(leaves))))
    return lost, sum(math.prod(leaf.shape) for leaf in leaves)


def require_trained(rows: Sequence[Mapping[str, Any]], steps: int) -> None:
    """Refuses to end a run well that has collapsed though its numbers are finite.

    It has collapsed if its last steps updated nothing though there was something to learn; or, in
    supervised training, if its loss ends more than ten times above where it began.

    The end is the last tenth of the records, and at least three. A skipped step (`skipped` in its
    record is 1) is in order at the end of a run that has solved its task: all rewards of a group
    are equal then, and high. So a run whose end was skipped must earn there, on average, at least
    what it earned while it trained; and where no step trained, all answers must be right. Of a run
    of fewer records a warning is all that can be said.

    Args:
        rows: the run's records, of metrics.jsonl.
        steps: steps of the whole run.

    Raises:
        Untrained: the run is lost.
    """
    end = rows[-max(_END_RECORDS, math.ceil(_END_SHARE * len(rows))) :]
    if len(rows) > _END_RECORDS and "reward" not in rows[0]:
        first, last = float(rows[0].get("loss", 0)), _mean(end, "loss")
        if last > _LOSS_GROWTH * max(first, 1.0):
            raise Untrained(
                f"the run has collapsed: its loss began at {first:.3g} and is {last:.3g} in its "
                f"last {len(end)} records. Nothing was exported. Train in a new workdir with a "
                "lower optimizer.lr"
            )
    # Recipes that train a policy and its denoiser count for each, "skipped" and "skipped/denoiser".
    learners = {name for row in rows for name in row if name.partition("/")[0] == "skipped"}
    if not learners:
        return
    found = [_require_learned(rows, name.removeprefix("skipped")) for name in sorted(learners)]
    if any(found):
        return
    problem = (
        f"nothing was trained in {steps} steps: no record has a group with a signal. "
        "metrics.jsonl says why: groups of equal rewards, or none that may be trained "
        "(filter.low, filter.high)"
    )
    if len(rows) < _END_RECORDS:
        logger.warning("%s.", problem)
    elif _mean(end, "accuracy") < 1:
        raise Untrained(f"{problem}. Nothing was exported")


def _require_learned(rows: Sequence[Mapping[str, Any]], learner: str) -> bool:
    """Whether one learner of a run trained; refuses one that has collapsed.

    Args:
        rows: the run's records.
        learner: end of the names of its metrics.
    """
    skipped, reward = f"skipped{learner}", f"reward{learner}"
    rows = [row for row in rows if skipped in row]
    trained = [row for row in rows if row[skipped] < 1]
    end = rows[-max(_END_RECORDS, math.ceil(_END_SHARE * len(rows))) :]
    if not trained or any(row[skipped] < 1 for row in end):
        return bool(trained)
    before, after = _mean(trained, reward), _mean(end, reward)
    if after < before:
        raise Untrained(
            f"the run has collapsed: it updated nothing after step {trained[-1]['step']} in its "
            f"last {len(end)} records, which earn {after:.3g} on average; those before earned "
            f"{before:.3g}. Nothing was exported. Train in a new workdir with a lower optimizer.lr"
        )
    return True


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(row.get(name, 0)) for row in rows) / len(rows)
