"""Floating-point operations of a rollout's steps: counted from shapes, and by the compiler."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jax_unmask.denoisers import Denoiser, DenoiserConfig, cached
from jax_unmask.denoisers.head import score_candidates
from jax_unmask.denoisers.transformer import abstract_params
from jax_unmask.rollout import RolloutSettings, Trajectory

Step = Literal["plain", "full", "prompt", "cached"]
"""A step without a cache; one that fills the cache; with cache "block", the forward over the
prompt; a step that reads the cache."""


@dataclasses.dataclass(frozen=True)
class RolloutFlops:
    """Operations of one row in one forward of each kind that a rollout has.

    Attributes:
        full: of a forward over the whole sequence (with cache "block": over the prompt).
        cached: of a forward that reads the cache; 0 without one.
    """

    full: int
    cached: int

    def executed(self, done: Trajectory) -> int:
        """Operations of all forwards that a rollout executed."""
        kinds = done.by_kind
        if kinds is None:
            return self.full * done.slots * int(done.forwards)
        full = self.full * kinds.full_rows * int(kinds.full_executed)
        return full + self.cached * done.slots * int(kinds.cached_executed)


def exact(
    config: DenoiserConfig, settings: RolloutSettings, prompt_length: int, scored: int
) -> RolloutFlops:
    """Matrix products of the denoiser, counted exactly from shapes.

    A multiplication and an addition are two operations; norms, softmax, rotations and the policy,
    which are not matrix products, count nothing. Of positions that are not scored, the last layer
    computes nothing but keys and values.

    Args:
        config: the denoiser.
        settings: shape of the rollout.
        prompt_length: prompt tokens, padding included.
        scored: canvas positions that a forward without a cache scores, see
            `rollout.scored_positions`.
    """
    length, cache = settings.gen_length, settings.cache
    whole = prompt_length + length
    if cache is None:
        return RolloutFlops(forward_flops(config, 1, whole, scored), 0)
    full = forward_flops(config, 1, whole, length)
    if cache.kind == "block":
        full = _products(config, prompt_length, 1, prompt_length)
    window = cache.window(length, settings.block_length)
    read = _products(config, window, window, window + whole)
    return RolloutFlops(full, read + _head(config, window))


def forward_flops(config: DenoiserConfig, batch: int, length: int, scored: int) -> int:
    """Matrix products of one forward over whole sequences, see `exact`.

    The transformer sees prompt and canvas (padding too), the output projection what is scored.
    """
    queries = min(scored + config.logits_shift, length)
    return batch * (_products(config, length, queries, length) + _head(config, scored))


def _head(config: DenoiserConfig, positions: int) -> int:
    return 2 * positions * config.hidden_size * config.vocab_size


def _products(config: DenoiserConfig, length: int, last: int, keys: int) -> int:
    """Of the layers, for one row: `length` positions, `last` of them in the last layer."""
    query = config.num_heads * config.head_dim
    key_and_value = 2 * config.num_kv_heads * config.head_dim * config.hidden_size
    # Scores and weighted sum: every query head against every key.
    attention = 2 * keys * query
    total = 0
    for run in config.layer_runs:
        weights = config.hidden_size * (2 * query + _mlp_width(config, run.has_experts))
        for layer in range(run.start, run.stop):
            queries = last if layer == config.num_layers - 1 else length
            total += length * key_and_value + queries * (weights + attention)
    return 2 * total


def _mlp_width(config: DenoiserConfig, has_experts: bool) -> int:
    """Width of what a token meets in a layer: of its MLP, or of its router and experts."""
    moe = config.experts
    if moe is None or not has_experts:
        return 3 * config.intermediate_size
    return moe.num_experts + 3 * (moe.per_token * moe.size + moe.shared_size)


def compiled(
    config: DenoiserConfig, settings: RolloutSettings, prompt_length: int, scored: int
) -> RolloutFlops | None:
    """What the compiler counts in the programs of the steps (`cost_analysis`), for one row.

    All operations, not matrix products alone. The compiler counts a loop's body once, however often
    it runs, so the steps are compiled with one layer and with two; the difference is a layer. (A
    step that reads the cache has no special last layer: there it is what one layer adds to the
    head.)

    Args:
        config: the denoiser; its layers must all be of one kind.
        settings: shape of the rollout.
        prompt_length: prompt tokens.
        scored: as of `exact`.

    Returns:
        None where the compiler does not count, or layers differ.
    """
    if len(config.layer_runs) > 1:
        return None
    cache = settings.cache

    def flops(step: Step) -> int | None:
        one, two = (
            _count(_resized(config, n), settings, prompt_length, scored, step) for n in (1, 2)
        )
        if one is None or two is None:
            return None
        if step == "cached":
            head = _count(config, settings, prompt_length, scored, "cached", head_only=True)
            return None if head is None else round(one + (config.num_layers - 1) * (one - head))
        return round(one + (config.num_layers - 1) * (two - one))

    read: int | None = 0
    if cache is None:
        full = flops("plain")
    else:
        full = flops("prompt" if cache.kind == "block" else "full")
        read = flops("cached")
    return None if full is None or read is None else RolloutFlops(full, read)


def _resized(config: DenoiserConfig, layers: int) -> DenoiserConfig:
    experts = config.experts
    if experts is not None:
        experts = dataclasses.replace(experts, layers=experts.layers[:1] * layers)
    return dataclasses.replace(config, num_layers=layers, experts=experts)


def _count(
    config: DenoiserConfig,
    settings: RolloutSettings,
    prompt_length: int,
    scored: int,
    step: Step,
    *,
    head_only: bool = False,
) -> float | None:
    """The compiler's count for one row and one forward."""
    denoiser, params = Denoiser(config), abstract_params(config)
    whole, cache = prompt_length + settings.gen_length, settings.cache
    width = whole if cache is None else cache.window(settings.gen_length, settings.block_length)
    tokens = jax.ShapeDtypeStruct((1, whole), jnp.int32)
    if step == "prompt":
        tokens = jax.ShapeDtypeStruct((1, prompt_length), jnp.int32)
    elif step == "cached":
        tokens = jax.ShapeDtypeStruct((1, width), jnp.int32)
    store = jax.eval_shape(lambda: cached.empty_cache(config, 1, whole))
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def score(params: Any, hidden: Any, keys: Any) -> Any:
        # The whole vocabulary at once: of a loop over slices, one slice would count.
        return score_candidates(denoiser, params, hidden, keys, temperature=settings.temperature)

    def run(params: Any, tokens: Any, store: Any, keys: Any) -> Any:
        real = jnp.ones(tokens.shape, bool)
        if step == "plain":
            start = jnp.full(1, prompt_length) if scored < settings.gen_length else None
            hidden = denoiser.apply(
                {"params": params}, tokens, real, last=scored, start=start, method="hidden"
            )
            return score(params, hidden, keys)
        if step == "cached":
            seen = jnp.ones((1, whole), bool)
            hidden, kept = cached.read(config, params, store, tokens, tokens, real, seen)
            return score(params, hidden, keys), kept
        last = 1 if step == "prompt" else settings.gen_length
        hidden, store = cached.fill(config, params, store, lambda _, new: new, tokens, real, last)
        return (hidden if step == "prompt" else score(params, hidden, keys)), store

    if head_only:
        hidden = jax.ShapeDtypeStruct((1, width, config.hidden_size), config.dtype)
        program = jax.jit(score).lower(params, hidden, key)
    else:
        program = jax.jit(run).lower(params, tokens, store, key)
    analysis = program.compile().cost_analysis()
    return None if not analysis else analysis.get("flops")
