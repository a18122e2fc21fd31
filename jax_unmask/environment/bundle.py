"""A denoiser, its tokenizer and a task, as a config names them."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from jax_unmask import denoisers, notation, tasks
from jax_unmask.denoisers import hub, sharding
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.denoisers.quantization import check_kind
from jax_unmask.rollout import Cache, parse_cache
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.mesh import param_shardings
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import ConfigError, SettingError, naming
from jax_unmask.shipped import shipped_models
from jax_unmask.tasks.base import Split, Task

_ENDLESS, _GENERATED = 2**24, 1024


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A denoiser with what is needed to pose it problems."""

    denoiser: denoisers.Denoiser
    params: Any  # None where nothing reads them.
    tokenizer: denoisers.Tokenizer
    task: Task
    name: str = ""  # In result rows, e.g. "sudoku" or "GSAI-ML/LLaDA-8B-Instruct".
    placement: Placement = dataclasses.field(default_factory=Placement)  # Of rollouts.
    policy: pathlib.Path | None = None  # Of a policy that was trained for the denoiser, if any.


def load_bundle(
    config: Any, splits: Sequence[Split] = ("train",), weights: Placement | None = None
) -> Bundle:
    """Builds a `Bundle` from `config.model` and `config.task`.

    Args:
        config: a full config; `model.path` is a shipped name (such as "sudoku"), a local
            Hugging Face or Orbax directory, or a hub name.
        splits: splits of the task that are going to be used; they are read before the weights, so
            that what is wrong with them shows first. Those of an evaluation during or after
            training are added.
        weights: where they go; by default where rollouts read them.

    Raises:
        ConfigError: a key of the config names something that cannot be loaded.
        FileNotFoundError: a file of the model is missing.
        ValueError: the model's files do not fit together.
    """
    task, placement = _checked_task(config, splits), placements.for_rollouts(config)
    quantization = config.model.quantization
    path = _model_path(config)
    with naming_model(path):
        denoiser, params, tokenizer = load_model(
            path,
            dtype=config.model.dtype,
            param_dtype=config.model.param_dtype,
            quantization=quantization,
            placement=weights or placement,
        )
    name = str(config.model.path) + (f" {quantization}" if quantization else "")
    return Bundle(denoiser, params, tokenizer, task, name, placement)


def describe(config: Any, splits: Sequence[Split] = ("train",)) -> Bundle:
    """The `Bundle` of `load_bundle` without the weights: they alone are not read.

    Raises: as `load_bundle`.
    """
    task, path = _checked_task(config, splits), _model_path(config)
    with naming_model(path):
        if config.model.quantization is not None:
            check_kind(config.model.quantization)
        shape, tokenizer = read_model(path)
    shape = dataclasses.replace(
        shape, dtype=config.model.dtype, param_dtype=config.model.param_dtype
    )
    denoiser, placement = denoisers.Denoiser(shape), placements.for_rollouts(config)
    return Bundle(denoiser, None, tokenizer, task, str(path), placement)


def check_weights(config: Any, *, absent: Collection[str] = ()) -> None:
    """Checks the files of the denoisers' weights without reading these.

    Args:
        config: a full config.
        absent: directories of models whose weights are not there yet.

    Raises:
        ConfigError: files are missing or damaged, or hold other tensors than `config.json` says.
    """
    for index, each in enumerate(config.each):
        path = each.model.path
        if path is None or path in absent:
            continue
        with config.naming(index), naming_model(path):
            denoisers.check_weights(path)


def naming_model(path: str) -> contextlib.AbstractContextManager[None]:
    """Names the key of the model in mistakes of its files."""
    remedy = f"Give a directory, a hub name, or one of {', '.join(shipped_models())}"
    return naming("model.path", path, remedy, ConfigError)


def _checked_task(config: Any, splits: Sequence[Split]) -> Task:
    """The task, once its data are read: those splits, and those of evaluations of a training."""
    task, evaluates = load_task(config), config.eval.after_training or config.eval.every
    measured = eval_splits(config) if evaluates else {}
    for split in dict.fromkeys((*splits, *measured)):
        check_split(config, task, split)
    return task


def eval_splits(config: Any) -> dict[Split, int]:
    """Splits that an evaluation of the config measures, with the number of problems; 0 for all."""
    chosen = {config.eval.split: config.eval.num_problems}
    if config.eval.validation_problems:
        chosen.setdefault("validation", config.eval.validation_problems)
    return chosen


def check_split(config: Any, task: Task, split: Split) -> int:
    """The number of problems of a split that an evaluation measures, all of them where not limited.

    Of tasks that generate their problems, it is 1,024 where not limited.

    Raises:
        ConfigError: the data are not there, or cannot be read; or an evaluation of the config asks
            for more problems than there are.
    """
    with naming("task.path", config.task.path, kind=ConfigError):
        found = len(task.source(split, seed=0))
    wanted = eval_splits(config).get(split, 0)
    if wanted > found:
        is_measured = split == config.eval.split
        key = "eval.num_problems" if is_measured else "eval.validation_problems"
        problem = f"the {split} split holds {found} problems"
        remedy = f"Give at most that many, or 0 for {'all' if is_measured else 'none'}"
        raise ConfigError(key, wanted, problem, remedy)
    return wanted or (found if found < _ENDLESS else _GENERATED)


def load_denoiser_config(config: Any) -> denoisers.DenoiserConfig:
    """The shape of the denoiser of `config.model`, from its `config.json` alone.

    Raises: as `load_bundle`.
    """
    path = _model_path(config)
    with naming_model(path):
        shape = read_config(hub.local_directory(path, weights=False))
    return shape


def _model_path(config: Any) -> str:
    if config.model.path:
        return config.model.path
    raise ConfigError(
        "model.path",
        config.model.path,
        "a denoiser is needed",
        f"Give one of the shipped models ({', '.join(shipped_models())}), a directory or a hub "
        "name",
    )


def load_model(
    path: str,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    quantization: str | None = None,
    placement: Placement | None = None,
) -> tuple[denoisers.Denoiser, denoisers.Params, denoisers.Tokenizer]:
    """Loads a denoiser and its tokenizer; `path` as in `load_bundle`.

    With a placement the weights are read straight into their places.
    """
    shardings = None
    shape, tokenizer = read_model(path)
    mesh = None if placement is None else placement.mesh
    if mesh is not None:
        sharding.check_mesh(shape, mesh)
        shardings = functools.partial(param_shardings, rules=sharding.RULES, mesh=mesh)
    denoiser, params = denoisers.from_pretrained(
        path, dtype=dtype, param_dtype=param_dtype, quantization=quantization, shardings=shardings
    )
    return denoiser, params, tokenizer


def read_model(path: str) -> tuple[denoisers.DenoiserConfig, denoisers.Tokenizer]:
    """Shape and tokenizer of a model, without its weights.

    The tokenizer comes first: it is quick to load and most mistakes show there.
    """
    tokenizer = denoisers.load_tokenizer(path, example=tasks.example_prompt(path))
    shape = read_config(hub.local_directory(path, weights=False))
    if tokenizer.mask_id != shape.mask_token_id:
        raise ValueError(
            f"{path}: the tokenizer's mask token has id {tokenizer.mask_id}, the model's "
            f"config says {shape.mask_token_id}; they do not belong together"
        )
    return shape, tokenizer


def build_cache(
    text: str, key: str, denoiser: denoisers.DenoiserConfig | None = None
) -> Cache | None:
    """The cache that a key of the config asks for, in the notation of `rollout.parse_cache`.

    Raises:
        ConfigError: it cannot be read, or does not fit the denoiser's attention (if that is given).
    """
    with naming(key, text, "Correct it, or give 'none'", ConfigError):
        cache = parse_cache(text)
        if cache is not None and denoiser is not None:
            cache.check_fits(denoiser)
    return cache


def load_task(config: Any, *, prompt_style: str | None = None) -> Task:
    """The task of `config.task`, in its own wording or another one of the published experiments.

    Raises:
        ConfigError: the task is unknown, or lacks its data.
    """
    settings = config.task
    if settings.name != "mixture":
        return _create(settings.name, _task_settings(config, settings.name, prompt_style))
    weights = dict(map(_weight, settings.mixture))
    for text in settings.settings:
        owner, _ = _addressed(text)
        if owner not in (None, *weights):
            raise ConfigError(
                "task.settings", text, f"{owner!r} is no part", f"Choose among {', '.join(weights)}"
            )
    mixed = {
        name: _create(name, _task_settings(config, name, prompt_style, part=True))
        for name in weights
    }
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if given and len(given) < len(weights):
        raise ConfigError(
            "task.mixture", settings.mixture, "only some have weights", "Give all of them, or none"
        )
    return _create("mixture", {"tasks": mixed, "weights": given or None})


def _create(name: str, arguments: dict[str, Any]) -> Task:
    try:
        return tasks.create(name, **arguments)
    except SettingError as error:
        if error.key == "path":
            raise ConfigError("task.path", error.value, error.problem, error.remedy) from error
        text = f"{error.key}={error.value}"
        raise ConfigError("task.settings", text, error.problem, error.remedy) from error
    except (ValueError, TypeError) as error:
        raise ConfigError("task", name, str(error), "Change that setting") from error


def _weight(text: str) -> tuple[str, float | None]:
    """Name and weight of a task of a mixture, such as "gsm8k" or "math=0.5"."""
    with naming("task.mixture", text, "Write NAME or NAME=WEIGHT", ConfigError):
        name, weight = notation.weighted(text)
        tasks.TASKS(name)
    return name, weight


def _addressed(text: str) -> tuple[str | None, str]:
    """The task that NAME.SETTING=VALUE is for, None where none is named, and SETTING=VALUE."""
    owner, dot, _ = text.partition("=")[0].rpartition(".")
    return (owner, text.removeprefix(f"{owner}.")) if dot else (None, text)


def _task_settings(
    config: Any, name: str, prompt_style: str | None, *, part: bool = False
) -> dict[str, Any]:
    """Arguments of a task's constructor: what the config has of what the task takes.

    Raises:
        ConfigError: there is no such task or setting, or a value is not of the setting's type.
    """
    try:
        accepted = tasks.settings(name)
    except notation.NotationError as error:
        raise ConfigError("task.name", name, error.problem, "Correct it") from error
    settings: dict[str, Any] = {"prompt_style": prompt_style}
    path = config.task.path
    if part and path:  # Each task of a mixture has a folder with its name.
        path = str(pathlib.Path(path) / name.rpartition(".")[2])
    settings |= {"path": path, "data_dir": config.task.tfds_data_dir}
    chosen = {key: value for key, value in settings.items() if key in accepted and value}
    kinds = {key: parameter.annotation for key, parameter in accepted.items()}
    for text in config.task.settings:
        owner, assignment = _addressed(text)
        if part and owner not in (None, name):
            continue
        try:
            if owner not in (None, name):
                raise notation.NotationError(text, f"the task is {name}, not {owner}")
            given = notation.pairs([assignment], text)
            chosen |= notation.Spec(name, settings=tuple(given.items())).arguments(kinds)
        except ValueError as error:
            remedy = f"Write {'NAME.' if part else ''}SETTING=VALUE"
            raise ConfigError("task.settings", text, str(error), remedy) from error
    return chosen
