"""Initial embeddings of number tokens that encode the numbers' values."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PERIODS = (2, 4, 5, 10, 20, 25, 40, 50, 100, 200, 400, 1000)
"""Last digits, quarters and fifths of the hundreds, and magnitude."""


def features(values: Sequence[int]) -> Float[np.ndarray, "N 2*K"]:
    """cos and sin of 2 pi value / period, over all `PERIODS`.

    Two numbers' sum and difference are then products of features, which a gated layer computes,
    and equal numbers are those of the largest inner product (arXiv 2502.09741).
    """
    angles = 2 * np.pi * np.asarray(values, np.float64)[:, None] / np.asarray(PERIODS)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def with_values(
    params: Mapping[str, Array], numbers: Mapping[int, int], key: Array
) -> dict[str, Array]:
    """Parameters whose number tokens have embeddings that encode their values.

    The features are turned at random and scaled as the other tokens are. Input embeddings and the
    untied head share them, so a value that is moved to another place is already its prediction.
    All of it is trained as before.

    Args:
        params: initial parameters, with "embedding" and perhaps "head", both [V, D].
        numbers: value by token id.
        key: typed PRNG key.

    Returns:
        `params` with new rows for these tokens.

    Raises:
        ValueError: the embeddings are too narrow for the features.
    """
    width = params["embedding"].shape[1]
    known = features(list(numbers.values()))
    if known.shape[1] > width:
        raise ValueError(
            f"number embeddings need a hidden size of at least {known.shape[1]}, found {width}"
        )
    turn = jax.random.orthogonal(key, width)[: known.shape[1]]
    rows = jnp.asarray(known) @ turn * (width / len(PERIODS)) ** 0.5
    ids = jnp.asarray(list(numbers))
    changed = dict(params)
    for name, scale in (("embedding", 1.0), ("head", width**-0.5)):
        if name in params:
            table = params[name]
            changed[name] = table.at[ids].set((scale * rows).astype(table.dtype))
    return changed
