"""A small random denoiser whose confidences spread over (0, 1)."""

from __future__ import annotations

import jax
import pytest

from jax_unmask import denoisers


@pytest.fixture(scope="session")
def random_model():
    config = denoisers.DenoiserConfig(
        family="llada",
        vocab_size=20,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=24,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_length=64,
        tie_embeddings=False,
        mask_token_id=2,
        eos_token_id=1,
        pad_token_id=1,
    )
    params = denoisers.init_params(config, jax.random.key(0))
    # Sharper predictions, so that confidences spread over (0, 1).
    params["head"] = params["head"] * 3.0
    return denoisers.Denoiser(config), params
