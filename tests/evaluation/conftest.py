"""A small random denoiser in LLaDA's format that can read and write Sudoku."""

import pathlib

import pytest

import tiny
from jax_unmask import recipes
from jax_unmask.environment.bundle import load_bundle


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("models") / "random"
    tiny.save_model(directory, ["1", "2", "3", "4", ".", "="], sharpness=2.0)
    return directory


@pytest.fixture
def config(model_dir: pathlib.Path):
    """Evaluates a few settings on ten problems."""
    return make_config(model_dir)


@pytest.fixture(scope="session")
def bundle(model_dir: pathlib.Path):
    return load_bundle(recipes.read(make_config(model_dir)))


def make_config(model_dir: pathlib.Path):
    config = recipes.config("policy_grpo")
    config.task.update(name="sudoku", prompt_length=17, truncate_prompts=False)
    config.model.update(path=str(model_dir), dtype="float32", param_dtype="float32")
    config.rollout.update(gen_length=16, block_length=16)
    config.eval.update(num_problems=10, batch_size=4, block_lengths=(16,), seeds=(0, 1))
    config.eval.examples = 0  # Recording compiles programs of its own.
    config.eval.policies = ("threshold:threshold=0.3|0.9", "random:tokens_per_step=4")
    return config
