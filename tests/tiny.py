"""Denoisers with random weights that are small enough for a test on a CPU."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from jax_unmask import denoisers
from jax_unmask.denoisers.word_level import save_word_level


def denoiser_config(**changes: Any) -> denoisers.DenoiserConfig:
    """A denoiser of one layer and 12 tokens, the last of which is the mask; with changes."""
    settings: dict[str, Any] = {
        "family": "llada",
        "vocab_size": 12,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 16,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "max_length": 32,
        "tie_embeddings": False,
        "mask_token_id": 11,
        "eos_token_id": 10,
        "pad_token_id": 10,
    }
    return denoisers.DenoiserConfig(**settings | changes)


def save_model(
    directory: pathlib.Path, vocabulary: Sequence[str], *, sharpness: float = 1.0
) -> None:
    """Writes a denoiser of up to 64 positions with a tokenizer of whole words.

    Args:
        directory: made if missing.
        vocabulary: the words.
        sharpness: factor of the weights; confidences differ more between positions where it is
            larger than 1.
    """
    directory.mkdir(parents=True, exist_ok=True)
    special = save_word_level(directory, vocabulary)
    config = denoiser_config(
        vocab_size=special["vocab_size"],
        max_length=64,
        mask_token_id=special["mask"],
        eos_token_id=special["eos"],
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
    )
    params = denoisers.init_params(config, jax.random.key(1))
    params = jax.tree.map(lambda leaf: sharpness * leaf, params)
    tokenizer = denoisers.load_tokenizer(directory)
    denoisers.save_pretrained(directory, denoisers.Denoiser(config), params, tokenizer)
