"""The order of a row's positions by score."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_LONGEST_PAIRWISE = 64
"""Up to here comparing every pair of positions is faster than sorting: XLA sorts one row after the
other on CPUs (docs/benchmarks/README.md)."""


def descending_ranks(
    scores: Float[Array, "*B L"], legal: Bool[Array, "*B L"]
) -> Int[Array, "*B L"]:
    """Each position's 0-based place among its row's legal positions, best score first.

    Of equal scores the lower position comes first. Illegal positions rank as legal ones of score
    -inf do, so the ranks of a row are a permutation.

    >>> descending_ranks(jnp.array([0.2, 0.9, 0.5, 0.9]), jnp.array([True, True, True, False]))
    Array([2, 0, 1, 3], dtype=int32)
    """
    scores = jnp.where(legal, scores, -jnp.inf)
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    if len(places) <= _LONGEST_PAIRWISE:
        mine, other = scores[..., :, None], scores[..., None, :]
        before = (other > mine) | ((other == mine) & (places < places[:, None]))
        return jnp.sum(before, axis=-1, dtype=jnp.int32)
    order = jnp.argsort(-scores, axis=-1, stable=True)
    return by_rank(jnp.broadcast_to(places, order.shape), order)


def by_rank(values: Float[Array, "*B L"], ranks: Int[Array, "*B L"]) -> Float[Array, "*B L"]:
    """The row's values in the order of `ranks`, which are a permutation: out[ranks[i]] = values[i].

    >>> by_rank(jnp.array([0.2, 0.9, 0.5]), jnp.array([2, 0, 1]))
    Array([0.9, 0.5, 0.2], dtype=float32)
    """
    flat, at = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (values, ranks))
    out = jax.vmap(lambda row, to: jnp.zeros_like(row).at[to].set(row, unique_indices=True))
    return out(flat, at).reshape(values.shape)
