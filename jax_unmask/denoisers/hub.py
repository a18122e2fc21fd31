"""Directories of models: local ones, downloads from the Hugging Face hub, and new ones."""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from jax_unmask.runtime.files import atomic_write, local_path
from jax_unmask.shipped import resolve_model, shipped_models

# `owner/name`, and nothing that could only be a path.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKENIZER_FILES = ["*.json", "*.jinja", "*.py", "merges.txt", "vocab.txt", "tokenizer.model"]
# What lies beside config and weights, and belongs to the model all the same.
_COMPANIONS = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "*processor_config.json",
    "*.py",  # Of the published class, for transformers' `trust_remote_code`; never run here.
)
FILES = [*_TOKENIZER_FILES, "*.safetensors"]
"""Patterns of the files of a model."""
_CONFIG = "config.json"


def local_directory(source: str | os.PathLike[str], *, weights: bool = True) -> pathlib.Path:
    """The local directory of a model; downloads it if `source` is a hub name.

    A local directory always wins over a hub repository of the same name.

    Args:
        source: a shipped model such as "sudoku" ("./sudoku" is a directory), a directory, or a hub
            name such as "GSAI-ML/LLaDA-8B-Instruct".
        weights: whether the weights are needed too.

    Raises:
        FileNotFoundError: there is no such directory, and no such model could be downloaded.
        NotADirectoryError: the path is a file.
    """
    path = local_path(resolve_model(os.fspath(source))).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"{path} is a file; give the directory that holds config.json")
    if not is_name(str(source)):
        problem = f"model directory {path} does not exist"
        if len(path.parts) == 1:
            problem += f", and no such model ships with the package ({', '.join(shipped_models())})"
        raise FileNotFoundError(problem)
    return download(str(source), FILES if weights else _TOKENIZER_FILES)


def is_downloaded(source: str | os.PathLike[str]) -> bool:
    """Whether a model is one of the hub, and no local directory."""
    return not local_path(resolve_model(os.fspath(source))).expanduser().is_dir()


def is_name(text: str) -> bool:
    """Whether a text can be a name on the hub, OWNER/NAME."""
    return _HUB_NAME.fullmatch(text) is not None


def check_name(text: str) -> None:
    """Raises a `ValueError` for what is no name on the hub."""
    if not is_name(text):
        raise ValueError(f"{text!r} is no name on the hub; write OWNER/NAME")


def download(name: str, patterns: list[str] | None) -> pathlib.Path:
    """The directory of a download from the hub, or of an earlier one.

    Args:
        name: OWNER/NAME.
        patterns: patterns of the files that are wanted; None for all.

    Raises:
        FileNotFoundError: it is not there, or the hub cannot be reached.
    """
    # Imported here: a local model needs no hub client.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"{name} is not a local directory, and could not be downloaded from the Hugging Face "
            f"hub ({type(error).__name__}); check the name and the connection. On a machine with a "
            f"network run `hf download {name} --local-dir DIR`, copy DIR here and give it as the "
            "path (--config.model.path=DIR, --model=DIR)"
        ) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it does not hold a JSON object.
    """
    try:
        # Editors on Windows begin a file with a byte order mark.
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent} holds no {path.name}; is it a model directory?"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


@contextlib.contextmanager
def reading_config(directory: pathlib.Path) -> Iterator[None]:
    """Makes one error that names the file of whatever its fields make a reader raise."""
    try:
        yield
    except ValueError as error:
        message = str(error).removeprefix("config.json: ")
        raise ValueError(f"{directory / _CONFIG}: {message}") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{directory / _CONFIG} has a field with a value of another kind ({error}); compare it "
            "with the published one"
        ) from error


def copy_companions(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the files of the tokenizer, its templates, the generation config and the code of the
    published class, unchanged.
    """
    for pattern in _COMPANIONS:
        for file in sorted(source.glob(pattern)):
            copy = target / file.relative_to(source)
            if file.is_file() and file.resolve() != copy.resolve():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def remote_code(directory: pathlib.Path) -> dict[str, Any]:
    """The field of `config.json` that names the code of the published class, if that is there."""
    if not (directory / _CONFIG).is_file():
        return {}
    named = read_json(directory / _CONFIG).get("auto_map")
    kept = {
        use: name
        for use, name in (named if isinstance(named, dict) else {}).items()
        # Code of another repository is named NAME--MODULE.CLASS.
        if isinstance(name, str)
        and ("--" in name or (directory / f"{name.rpartition('.')[0]}.py").is_file())
    }
    return {"auto_map": kept} if kept else {}


def begin_saving(directory: str | os.PathLike[str]) -> pathlib.Path:
    """Makes a directory ready for a model; without `config.json` it is not one yet."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _CONFIG).unlink(missing_ok=True)
    return directory


def finish_saving(directory: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes `config.json`, which comes last: a directory that has one is complete."""
    atomic_write(directory / _CONFIG, json.dumps(fields, indent=2) + "\n")
