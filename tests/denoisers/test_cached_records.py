"""Forwards that fill and read a cache, against the logits that the public code had there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unmask import denoisers
from jax_unmask.denoisers.cache import Written, empty_cache, write_positions
from jax_unmask.denoisers.transformer import forward

run = jax.jit(forward, static_argnums=0, static_argnames="keep")


def load(fixtures_dir, name):
    denoiser, params = denoisers.from_pretrained(fixtures_dir / name)
    return denoiser.config, params, denoiser


def logits_of(denoiser, params, hidden):
    return denoiser.apply({"params": params}, hidden, method="logits")


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("block", [4, 8])
def test_sdar(fixtures_dir, block):
    # A prefill of clean tokens, then per block a forward on its noisy tokens, which leaves the
    # cache alone, and one on its clean tokens, which goes into it.
    config, params, denoiser = load(fixtures_dir, "sdar")
    records = load_file(fixtures_dir / "sdar" / "cases.safetensors")
    record = {
        name.removeprefix(f"kv_b{block}_pre8."): value
        for name, value in records.items()
        if name.startswith(f"kv_b{block}_pre8.")
    }
    config = dataclasses.replace(config, attention_block=block)
    clean, noisy = jnp.asarray(record["clean_ids"]), jnp.asarray(record["noisy_ids"])
    total, prefill = clean.shape[1], 8
    cache = empty_cache(config, 1, total)
    hidden, cache = run(config, params, clean[:, :prefill], cache=cache)
    close(logits_of(denoiser, params, hidden), record["prefill_logits"])
    for layer in range(config.num_layers):
        close(cache.keys[0][layer, :, :, :prefill], record[f"prefill_k{layer}"])
        close(cache.values[0][layer, :, :, :prefill], record[f"prefill_v{layer}"])
    found = []
    for start in range(prefill, total, block):
        positions = jnp.arange(start, start + block)[None]
        read = functools.partial(
            run, config, params, positions=positions, cached_mask=(jnp.arange(total) < start)[None]
        )
        hidden, _ = read(noisy[:, start : start + block], cache=cache)
        found.append(logits_of(denoiser, params, hidden))
        _, new = read(clean[:, start : start + block], cache=cache, keep=True)
        cache = write_positions(cache, Written(new, positions, jnp.ones(positions.shape, bool)))
    close(jnp.concatenate(found, axis=1), record["denoise_logits"])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llada", "fastdllm_threshold_prefix"),
        ("llada", "fastdllm_threshold_dual"),
        ("dream", "fastdream_threshold_prefix"),
        ("dream", "fastdream_threshold_dual"),
    ],
)
def test_fast_dllm(fixtures_dir, model, name):
    # The first forward is whole and fills the cache; the next two read it: the dual cache around
    # the block, the prefix cache before it (and then everything behind is computed again).
    config, params, denoiser = load(fixtures_dir, model)
    records = load_file(fixtures_dir / "samplers" / "cases.safetensors")
    prompt = records[f"{name}.prompt"]
    text, steps = records[f"{name}.sequences"], records[f"{name}.step_map"]
    width, total = prompt.shape[1], text.shape[1]
    filled = steps.copy()
    filled[:, :width] = -1

    def aligned(logits):
        # Dream's score the next token; the public sampler moves those of a slice by one, too.
        if not config.logits_shift:
            return logits
        return np.concatenate([logits[:, :1], logits[:, :-1]], axis=1)

    def canvas(step):
        return jnp.asarray(np.where(filled < step, text, config.mask_token_id))

    cache = empty_cache(config, 1, total)
    hidden, cache = run(config, params, canvas(0), cache=cache)
    close(logits_of(denoiser, params, hidden), aligned(records[f"{name}.forward0_logits"]))
    for step in (1, 2):
        expected = aligned(records[f"{name}.forward{step}_logits"])
        start = int(records[f"{name}.forward_offset"][step])
        end = start + expected.shape[1]
        positions = jnp.arange(start, end)[None]
        places = jnp.arange(total)[None]
        seen = (places < start) | (places >= end)
        hidden, _ = run(
            config,
            params,
            canvas(step)[:, start:end],
            positions=positions,
            cache=cache,
            cached_mask=seen,
        )
        close(logits_of(denoiser, params, hidden), expected)
