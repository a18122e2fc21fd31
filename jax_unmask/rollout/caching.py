"""Kinds of caches: the keys and values that a rollout keeps from one step to the next."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from jax_unmask import notation
from jax_unmask.denoisers.config import DenoiserConfig

CacheKind = Literal["prefix", "dual", "block"]
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Cache:
    """Settings of a rollout's cache (static).

    With "prefix" and "dual" (Wu et al. 2025, "Fast-dLLM", arXiv 2505.22618), which are for full
    attention, a row opens each block with a forward over its whole sequence. Its other steps in the
    block compute only the positions from the block to the end of the canvas ("prefix"), or those of
    the block alone ("dual"); keys and values of all others stay those of the opening forward. Both
    are approximations. "block" is for block-causal denoisers and exact: a row computes the current
    block only, and once more when the block is done, for its final keys and values.

    Attributes:
        kind: see above.
        refresh_every: with "prefix" and "dual": a forward over the whole sequence at every so
            many steps of a block, not only at its first. 1 caches nothing; 0 for never.
        extra_tokens: with "dual": so many positions after the block are computed anew as well
            (fewer where the canvas ends).
        refresh_rows: rows of a forward over whole sequences (per slot group). A row that needs one
            waits until so many do, or no row can do anything else. Any number gives the same
            tokens; what differs is time: waiting rows leave slots idle, and small forwards use a
            device less well. None for about an eighth of the slots.
    """

    kind: CacheKind
    refresh_every: int = 0
    extra_tokens: int = 0
    refresh_rows: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(CacheKind):
            raise ValueError(
                f"cache {self.kind!r} is unknown; choose one of "
                f"{', '.join((NONE, *get_args(CacheKind)))}"
            )
        for name in ("refresh_every", "extra_tokens"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"cache {self.kind}: {name}={value} must not be negative")
        if self.refresh_every and self.kind == "block":
            raise ValueError(
                f"cache block: refresh_every={self.refresh_every} has no meaning, as its keys and "
                "values are exact; leave it out"
            )
        if self.extra_tokens and self.kind != "dual":
            raise ValueError(
                f"cache {self.kind}: extra_tokens={self.extra_tokens} is for cache 'dual'; leave "
                "it out"
            )
        if self.refresh_rows is not None and self.refresh_rows < 1:
            raise ValueError(
                f"cache {self.kind}: refresh_rows={self.refresh_rows} must be at least 1"
            )

    def check(self, config: DenoiserConfig) -> None:
        """Refuses a denoiser that the cache is not for.

        Raises:
            ValueError: it is block-causal and the cache for full attention, or the reverse.
        """
        is_block_causal = config.attention_block is not None
        if is_block_causal and self.kind != "block":
            raise ValueError(
                f"cache {self.kind!r} is for denoisers with full attention, and this one "
                f"({config.family}) is block-causal; use 'block', which is exact"
            )
        if not is_block_causal and self.kind == "block":
            raise ValueError(
                f"cache 'block' is for block-causal denoisers, and this one ({config.family}) has "
                "full attention; use 'dual' or 'prefix'"
            )
        if self.kind == "block" and config.logits_shift:
            raise ValueError(
                "cache 'block' cannot serve a denoiser whose head scores the next token "
                f"({config.family}): the first position of a block is scored in the block before"
            )

    def window(self, gen_length: int, block_length: int) -> int:
        """Positions W that a row computes in a step that reads the cache."""
        if self.kind == "prefix":
            return gen_length
        return min(block_length + self.extra_tokens, gen_length)

    def rows_per_refresh(self, slots: int) -> int:
        """Rows of a forward over whole sequences, of so many slots (of one group)."""
        if self.refresh_rows is not None:
            return min(self.refresh_rows, slots)
        # A divisor of the slots, so that rows in lock step never wait.
        most = -(-slots // 8)
        return max(count for count in range(1, most + 1) if slots % count == 0)

    def __str__(self) -> str:
        """In the notation of `parse_cache`."""
        changed = tuple(
            (field.name, str(getattr(self, field.name)))
            for field in dataclasses.fields(self)[1:]
            if getattr(self, field.name) != field.default
        )
        return notation.Spec(self.kind, settings=changed).text


def parse_cache(text: str) -> Cache | None:
    """Reads "none", or a kind of cache with settings.

    >>> parse_cache("dual:refresh_every=8")
    Cache(kind='dual', refresh_every=8, extra_tokens=0, refresh_rows=None)

    Raises:
        ValueError: the text cannot be read, or a setting makes no sense.
    """
    spec = notation.parse(text)
    if spec.target:
        raise notation.NotationError(text, f"{spec.target!r} is not of the form SETTING=VALUE")
    kinds = {name: each.annotation for name, each in notation.parameters(Cache).items()}
    del kinds["kind"]
    settings = spec.arguments(kinds)
    if spec.name != NONE:
        return Cache(spec.name, **settings)  # type: ignore[arg-type]  # The constructor checks it.
    if settings:
        raise notation.NotationError(text, "without a cache there is nothing to set")
    return None
