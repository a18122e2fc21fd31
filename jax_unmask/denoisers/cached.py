"""Today's names of `transformer.forward` with a cache; callers move over to it one by one."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.cache import KeyValueCache, Put, empty_cache, write_positions
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.transformer import Params, forward

__all__ = ["KeyValueCache", "Put", "empty_cache", "fill", "read", "write"]


def fill(
    config: DenoiserConfig,
    params: Params,
    cache: KeyValueCache,
    put: Put,
    tokens: Int[Array, "F S"],
    attention_mask: Bool[Array, "F S"],
    last: int,
) -> tuple[Float[Array, "F L D"], KeyValueCache]:
    """`forward` over whole sequences, which writes the first S positions of the cache."""
    found: Any = forward(config, params, tokens, attention_mask, last=last, cache=cache, put=put)
    return found


def read(
    config: DenoiserConfig,
    params: Params,
    cache: KeyValueCache,
    tokens: Int[Array, "B W"],
    positions: Int[Array, "B W"],
    mask: Bool[Array, "B W"],
    cached_mask: Bool[Array, "B K"],
    at: Int[Array, "B W"] | None = None,
) -> tuple[Float[Array, "B W D"], KeyValueCache]:
    """`forward` over a few positions of each row, which see each other and cached ones."""
    found: Any = forward(
        config, params, tokens, mask, positions, cache=cache, cached_mask=cached_mask, at=at
    )
    return found


write = write_positions
