"""Floating-point operations of a rollout's steps, as the compiler counts them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jax_unmask.denoisers import Denoiser, DenoiserConfig
from jax_unmask.denoisers.cache import empty_cache
from jax_unmask.denoisers.head import score_candidates
from jax_unmask.denoisers.transformer import abstract_params, forward
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.flops import RolloutFlops

Step = Literal["plain", "full", "prompt", "cached"]
"""A step without a cache; one that fills the cache; with cache "block", the forward over the
prompt; a step that reads the cache."""


def compiled_flops(
    config: DenoiserConfig, settings: RolloutSettings, prompt_length: int, scored: int
) -> RolloutFlops | None:
    """FLOPs that the compiler counts in the programs of the steps (`cost_analysis`), for one row.

    All operations, not matrix products alone. The compiler counts a loop's body once, however often
    it runs, so the steps are compiled with one layer and with two; the difference is a layer. (A
    step that reads the cache has no special last layer: there it is what one layer adds to the
    head.) The arguments are those of `rollout.flops.rollout_flops`. None where the compiler does
    not count, or layers differ.
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
    store = jax.eval_shape(lambda: empty_cache(config, 1, whole))
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def score(params: Any, hidden: Any, keys: Any) -> Any:
        # The whole vocabulary at once: of a loop over slices, one slice would count.
        return score_candidates(denoiser, params, hidden, keys, temperature=settings.temperature)

    def run(params: Any, tokens: Any, store: Any, keys: Any) -> Any:
        real = jnp.ones(tokens.shape, bool)
        if step == "plain":
            start = jnp.full(1, prompt_length) if scored < settings.gen_length else None
            hidden, _ = forward(config, params, tokens, real, last=scored, start=start)
            return score(params, hidden, keys)
        if step == "cached":
            seen = jnp.ones((1, whole), bool)
            hidden, _ = forward(config, params, tokens, real, tokens, cache=store, cached_mask=seen)
            return score(params, hidden, keys)
        last = 1 if step == "prompt" else settings.gen_length
        hidden, store = forward(config, params, tokens, real, last=last, cache=store)
        return (hidden if step == "prompt" else score(params, hidden, keys)), store

    if head_only:
        hidden = jax.ShapeDtypeStruct((1, width, config.hidden_size), config.dtype)
        program = jax.jit(score).lower(params, hidden, key)
    else:
        program = jax.jit(run).lower(params, tokens, store, key)
    analysis = program.compile().cost_analysis()
    return None if not analysis else analysis.get("flops")
