"""The parts that training and evaluation share: a denoiser, its tokenizer and a task."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jax_unmask import denoisers, tasks
from jax_unmask.runtime.config import ConfigError
from jax_unmask.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A denoiser with what is needed to pose it problems.

    Attributes:
        denoiser: the dLLM.
        params: its parameters.
        tokenizer: its tokenizer.
        task: where prompts come from and who checks responses.
        name: how result rows call the denoiser, e.g. "sudoku" or "GSAI-ML/LLaDA-8B-Instruct".
    """

    denoiser: denoisers.Denoiser
    params: denoisers.Params
    tokenizer: denoisers.Tokenizer
    task: Task
    name: str = ""


def load_bundle(config: ConfigDict) -> Bundle:
    """Builds the parts from `config.model` and `config.task`.

    Args:
        config: a full config; `model.path` is a shipped name ("sudoku", "arithmetic"), a local
            Hugging Face or Orbax directory, or a hub name.

    Raises:
        ConfigError: a key of the config names something that cannot be loaded.
        FileNotFoundError: a file of the model is missing.
        ValueError: the model's files do not fit together.
    """
    if not config.model.path:
        raise ConfigError(
            "model.path",
            config.model.path,
            "a denoiser is needed",
            f"Give one of the shipped models ({', '.join(shipped_models())}), a directory or a "
            "hub name",
        )
    task = load_task(config)
    denoiser, params, tokenizer = load_model(
        config.model.path, dtype=config.model.dtype, param_dtype=config.model.param_dtype
    )
    return Bundle(denoiser, params, tokenizer, task, str(config.model.path))


def load_model(
    path: str, *, dtype: str | None = None, param_dtype: str | None = None
) -> tuple[denoisers.Denoiser, denoisers.Params, denoisers.Tokenizer]:
    """Loads a denoiser and its tokenizer; `path` as in `load_bundle`.

    The tokenizer comes first: it is quick to load and most mistakes show there.
    """
    directory = resolve_model(path)
    tokenizer = denoisers.load_tokenizer(directory)
    denoiser, params = denoisers.from_pretrained(directory, dtype=dtype, param_dtype=param_dtype)
    if tokenizer.mask_id != denoiser.config.mask_token_id:
        raise ValueError(
            f"{directory}: the tokenizer's mask token has id {tokenizer.mask_id}, the model's "
            f"config says {denoiser.config.mask_token_id}; they do not belong together"
        )
    return denoiser, params, tokenizer


def load_task(config: ConfigDict, *, prompt_style: str = "training") -> Task:
    """Makes the task of `config.task`.

    Args:
        config: a full config.
        prompt_style: "training" or "evaluation"; the published experiments word their prompts
            differently. Plays no part for tasks that know only one way to ask.

    Raises:
        ConfigError: the task is unknown, or lacks its data.
    """
    settings = config.task
    if settings.name not in tasks.names():
        raise ConfigError(
            "task.name",
            settings.name,
            "there is no such task",
            f"Choose one of {', '.join(tasks.names())}",
        )
    if settings.name == "mixture":
        root = pathlib.Path(_data_path(config))
        parts = {
            name: {"path": str(root / name), "prompt_style": prompt_style}
            for name in ("gsm8k", "math")
        }
        return tasks.create("mixture", tasks=parts)
    return tasks.create(settings.name, **_task_settings(config, prompt_style))


def _task_settings(config: ConfigDict, prompt_style: str) -> dict[str, Any]:
    """Arguments of the task's constructor; tasks that generate their problems need none."""
    if config.task.name == "gsm8k":
        return {
            "path": config.task.path,
            "data_dir": config.task.tfds_data_dir,
            "prompt_style": prompt_style,
        }
    if config.task.name == "math":
        return {"path": _data_path(config), "prompt_style": prompt_style}
    return {}


def _data_path(config: ConfigDict) -> str:
    path = config.task.path
    if not path:
        needed = "gsm8k/ and math/" if config.task.name == "mixture" else "train.jsonl, test.jsonl"
        raise ConfigError(
            "task.path",
            path,
            f"task {config.task.name!r} reads its problems from files",
            f"Give the directory that holds {needed}",
        )
    return path


def assets() -> pathlib.Path:
    """Where the files lie that ship with the package."""
    return pathlib.Path(str(importlib.resources.files("jax_unmask"))) / "assets"


def shipped_models() -> list[str]:
    """Names of the denoisers that ship with the package."""
    return sorted(path.parent.name for path in assets().glob("*/config.json"))


def shipped_policies() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(path.parent.name for path in assets().glob("policies/*/policy_config.json"))


def resolve_model(path: str) -> str:
    """The directory of a shipped model, or `path` itself (write "./sudoku" for a directory)."""
    return str(assets() / path) if path in shipped_models() else path
