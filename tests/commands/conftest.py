"""A small random denoiser in LLaDA's format that can read and write Sudoku."""

from __future__ import annotations

import pathlib

import jax
import pytest

from jax_unmask import denoisers
from jax_unmask.denoisers.word_level import save_word_level


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("models") / "random"
    directory.mkdir()
    special = save_word_level(directory, ["1", "2", "3", "4", ".", "="])
    config = denoisers.DenoiserConfig(
        family="llada",
        vocab_size=special["vocab_size"],
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=16,
        rope_theta=10000.0,
        norm_eps=1e-5,
        max_length=64,
        tie_embeddings=False,
        mask_token_id=special["mask"],
        eos_token_id=special["eos"],
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
    )
    params = denoisers.init_params(config, jax.random.key(1))
    tokenizer = denoisers.load_tokenizer(directory)
    denoisers.save_pretrained(directory, denoisers.Denoiser(config), params, tokenizer)
    return directory
