"""A small random denoiser in LLaDA's format that can read Sudoku, and tiny experiments with it."""

import pathlib

import pytest

import tiny
from jax_unmask import recipes
from jax_unmask.commands import command_line

_ALL = {"train.steps": 3, "log.tensorboard": False}
_ROLLOUTS = {
    **_ALL,
    "model.param_dtype": "float32",
    "rollout.prompts_per_step": 2,
    "rollout.group_size": 2,
    "optimizer.lr": 1e-2,
}
_SUPERVISED = {
    **_ALL,
    "model.hidden_size": 8,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.intermediate_size": 8,
    "data.batch_size": 4,
}
_CHANGES = {
    "policy_grpo": {**_ROLLOUTS, "task.truncate_prompts": False, "learner.minibatches": 1},
    "policy_environments": {**_ROLLOUTS, "task.truncate_prompts": False, "learner.minibatches": 1},
    "tracerl": {
        **_ROLLOUTS,
        "model.remat": False,
        "rollout.policy": "threshold:threshold=0.3",
        "learner.shrink": 4,
    },
    "joint": {
        **_ROLLOUTS,
        "task.truncate_prompts": False,
        "model.remat": False,
        "learner.minibatches": 1,
        "denoiser.learner.shrink": 4,
        "denoiser.optimizer.lr": 1e-2,
    },
    "sft": _SUPERVISED,
    "state_sft": _SUPERVISED,
}
TINY = {recipe: tiny.SETTINGS[recipe] | changes for recipe, changes in _CHANGES.items()}
FILE = """
from jax_unmask import recipes


def get_config():
    config = recipes.config("{recipe}")
    config.update_from_flattened_dict({settings!r})
    return config
"""


@pytest.fixture(autouse=True)
def keep_logging(monkeypatch):
    """Commands would send messages to a stream that pytest closes after the test."""
    monkeypatch.setattr(command_line, "set_up_logging", lambda: None)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("models") / "random"
    tiny.save_model(directory, ["1", "2", "3", "4", ".", "="])
    return directory


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A denoiser that reads bytes, with LLaDA's special tokens and without a chat template."""
    directory = tmp_path_factory.mktemp("bytes")
    tiny.save_byte_model(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_settings(tiny_model_dir):
    """Settings (flat) of a tiny experiment of a recipe, with changes."""

    def settings(recipe, **changes):
        from_scratch = recipe in ("sft", "state_sft")
        model = {} if from_scratch else {"model.path": str(tiny_model_dir)}
        return TINY[recipe] | model | {key.replace("__", "."): v for key, v in changes.items()}

    return settings


@pytest.fixture(scope="session")
def tiny_config(tiny_settings):
    """The config of a tiny experiment: `tiny_config("sft", data__batch_size=2)`."""

    def make(recipe="policy_grpo", **changes):
        config = recipes.config(recipe)
        config.update_from_flattened_dict(tiny_settings(recipe, **changes))
        return config

    return make


@pytest.fixture(scope="session")
def write_experiment(tiny_settings):
    """Writes the same as an experiment file."""

    def write(path, recipe="policy_grpo", **changes):
        settings = tiny_settings(recipe, **changes)
        path.write_text(FILE.format(recipe=recipe, settings=settings))
        return path

    return write
