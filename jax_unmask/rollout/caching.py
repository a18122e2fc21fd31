"""Kinds of caches: the keys and values that a rollout keeps from one step to the next."""

import dataclasses
from typing import Literal, get_args

from jax_unmask import notation
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.settings import Settings, setting

CacheKind = Literal["prefix", "dual", "block"]
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Cache(Settings):
    """Settings of a rollout's cache (static).

    With "prefix" and "dual" (Wu et al. 2025, "Fast-dLLM", arXiv 2505.22618), which are for full
    attention, a row opens each block with a forward over its whole sequence. Its other steps in the
    block compute only the positions from the block to the end of the canvas ("prefix"), or those of
    the block alone ("dual"); keys and values of all others stay those of the opening forward. Both
    are approximations. "block" is for block-causal denoisers and exact: a row computes the current
    block only, and once more when the block is done, for its final keys and values.

    A row that needs a forward over its whole sequence waits until `refresh_rows` rows do, or no row
    can do anything else. Any number gives the same tokens; what differs is time: waiting rows leave
    slots idle, and small forwards use a device less well.
    """

    kind: CacheKind = setting("dual", "Kind of cache.")
    refresh_every: int = setting(
        0,
        "With prefix and dual: a forward over the whole sequence at every so many steps of a "
        "block, not only at its first. 1 caches nothing; 0 for never.",
        ge=0,
    )
    extra_tokens: int = setting(
        0,
        "With dual: so many positions after the block are computed anew as well (fewer where the "
        "canvas ends).",
        ge=0,
    )
    horizon: int | None = setting(
        None,
        "With prefix: positions after the block that its other steps compute and see, as in "
        "dLLM-RL (128 there); later ones are hidden. None for all of them.",
        ge=0,
    )
    refresh_rows: int | None = setting(
        None,
        "Rows of a forward over whole sequences (per slot group); None for about an eighth of the "
        "slots.",
        ge=1,
    )

    def check(self) -> None:
        self.require(
            not self.refresh_every or self.kind != "block",
            "refresh_every",
            "cache block is exact: there is nothing to refresh",
            "Leave it out",
        )
        self.require(
            not self.extra_tokens or self.kind == "dual",
            "extra_tokens",
            f"it is for cache dual, not {self.kind}",
            "Leave it out",
        )
        self.require(
            self.horizon is None or self.kind == "prefix",
            "horizon",
            f"it is for cache prefix, not {self.kind}",
            "Leave it out",
        )

    def check_fits(self, config: DenoiserConfig) -> None:
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
        if self.kind == "prefix" and self.horizon is None:
            return gen_length
        return min(block_length + self.extra_tokens + (self.horizon or 0), gen_length)

    def rows_per_refresh(self, slots: int) -> int:
        """Rows of a forward over whole sequences, of so many slots (of one group)."""
        if self.refresh_rows is not None:
            return min(self.refresh_rows, slots)
        # A divisor of the slots, so that rows in lock step never wait.
        most = -(-slots // 8)
        return max(count for count in range(1, most + 1) if slots % count == 0)

    def __str__(self) -> str:
        """The notation that `parse_cache` reads."""
        changed = tuple(
            (field.name, str(getattr(self, field.name)))
            for field in dataclasses.fields(self)[1:]
            if getattr(self, field.name) != field.default
        )
        return notation.Spec(self.kind, settings=changed).text


def parse_cache(text: str) -> Cache | None:
    """Reads "none", or a kind of cache with settings.

    >>> parse_cache("dual:refresh_every=8")
    Cache(kind='dual', refresh_every=8, extra_tokens=0, horizon=None, refresh_rows=None)

    Raises:
        ValueError: the text cannot be read, or a setting makes no sense.
    """
    spec = notation.parse(text)
    if spec.name not in (NONE, *get_args(CacheKind)):
        known = f"{NONE}, {', '.join(get_args(CacheKind))}"
        raise notation.NotationError(text, f"there is no cache {spec.name!r}; known: {known}")
    if spec.target:
        raise notation.NotationError(text, f"{spec.target!r} is not of the form SETTING=VALUE")
    kinds = {name: each.annotation for name, each in notation.parameters(Cache).items()}
    del kinds["kind"]
    settings = spec.arguments(kinds)
    if spec.name == NONE and settings:
        raise notation.NotationError(text, "without a cache there is nothing to set")
    try:
        return None if spec.name == NONE else Cache(spec.name, **settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise notation.NotationError(text, str(error)) from error
