"""A small random denoiser in LLaDA's format that can read and write Sudoku."""

from __future__ import annotations

import pathlib

import jax
import pytest

from jax_unmask import denoisers
from jax_unmask.config import policy_grpo
from jax_unmask.denoisers.word_level import save_word_level
from jax_unmask.evaluation.bundle import load_bundle


def save_model(directory: pathlib.Path, vocabulary: list[str]) -> None:
    directory.mkdir(parents=True)
    special = save_word_level(directory, vocabulary)
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
    # Sharper than at initialisation, so that confidences differ between positions.
    params = jax.tree.map(lambda leaf: 2 * leaf, denoisers.init_params(config, jax.random.key(1)))
    tokenizer = denoisers.load_tokenizer(directory)
    denoisers.save_pretrained(directory, denoisers.Denoiser(config), params, tokenizer)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("models") / "random"
    save_model(directory, ["1", "2", "3", "4", ".", "="])
    return directory


@pytest.fixture
def config(model_dir: pathlib.Path):
    """Evaluates a few settings on ten problems."""
    config = policy_grpo()
    config.task.update(name="sudoku", prompt_length=17, truncate_prompts=False)
    config.model.update(path=str(model_dir), dtype="float32", param_dtype="float32")
    config.rollout.update(gen_length=16, block_length=16)
    config.eval.update(num_problems=10, batch_size=4, block_lengths=(16,), seeds=(0, 1))
    config.eval.examples = 0  # Recording compiles programs of its own.
    config.eval.policies = ("threshold:threshold=0.3|0.9", "random:tokens_per_step=4")
    return config


@pytest.fixture
def bundle(config):
    return load_bundle(config)
