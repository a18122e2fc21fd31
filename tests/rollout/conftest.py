"""A small random denoiser whose confidences spread over (0, 1)."""

from __future__ import annotations

import jax
import pytest

import tiny
from jax_unmask import denoisers


@pytest.fixture(scope="session")
def random_model():
    config = tiny.denoiser_config(
        vocab_size=20,
        intermediate_size=24,
        max_length=64,
        mask_token_id=2,
        eos_token_id=1,
        pad_token_id=1,
    )
    params = denoisers.init_params(config, jax.random.key(0))
    # Sharper predictions, so that confidences spread over (0, 1).
    params["head"] = params["head"] * 3.0
    return denoisers.Denoiser(config), params
