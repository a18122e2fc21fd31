"""A small random denoiser whose confidences spread over (0, 1)."""

import json

import jax
import pytest
from safetensors.numpy import load_file

import tiny
from jax_unmask import denoisers


@pytest.fixture(scope="session")
def recorded(fixtures_dir):
    """Arrays and descriptions of the decodings of the public samplers."""
    folder = fixtures_dir / "samplers"
    cases = json.loads((folder / "meta.json").read_text())["cases"]
    return load_file(folder / "cases.safetensors"), {case["name"]: case for case in cases}


@pytest.fixture(scope="session")
def models(fixtures_dir):
    """Small models of three families, as their public implementations saved them."""
    names = ("llada", "dream", "sdar")
    return {name: denoisers.from_pretrained(fixtures_dir / name) for name in names}


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
