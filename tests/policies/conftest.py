"""Random observations for policy tests."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask.policies import Observation


def _observation(seed: int, rows: int = 4, length: int = 8, **leaves: object) -> Observation:
    """Rows with two blocks; the first row is in its first block with legal positions, the last has
    none. Hidden width 6, four largest probabilities, candidates from five tokens."""
    rng = np.random.default_rng(seed)
    masked = rng.random((rows, length)) < 0.7
    start = rng.integers(0, 2, rows) * (length // 2)
    start[0] = 0
    masked[0, 0] = True
    masked[-1] = False
    index = np.arange(length)
    inside = (index >= start[:, None]) & (index < start[:, None] + length // 2)
    probs = np.sort(rng.dirichlet(np.ones(4), (rows, length)))[..., ::-1].astype(np.float32)
    fields = {
        "candidate": rng.integers(0, 5, (rows, length)),
        "confidence": probs[..., 0],
        "top_probs": probs,
        "masked": masked,
        "legal": masked & inside,
        "step": rng.integers(0, length, rows),
        "step_in_block": np.zeros(rows, int),
        "block_start": start,
        "entropy": -(probs * np.log(probs)).sum(-1),
        "hidden": rng.standard_normal((rows, length, 6)).astype(np.float32),
    }
    return Observation(**jax.tree.map(jnp.asarray, fields | leaves), block_length=length // 2)


@pytest.fixture(scope="session")
def make_observation() -> Callable[..., Observation]:
    """Builds a random `Observation` from a seed; leaves can be replaced by keyword."""
    return _observation
