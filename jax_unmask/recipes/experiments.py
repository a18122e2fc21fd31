"""Experiment files: Python files with a function `get_config`, shipped ones by their names."""

import pathlib
import runpy
import traceback
from collections.abc import Sequence

from ml_collections import ConfigDict

from jax_unmask.runtime.config import change
from jax_unmask.shipped import experiment


def load_config(file: str) -> ConfigDict:
    """The config of an experiment file, FILE.py or FILE.py:ARGUMENT; see `find_experiment`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it raises an exception, or defines no config; names its line.
    """
    path, _, argument = find_experiment(file).partition(":")
    try:
        make = runpy.run_path(path).get("get_config")
        if not callable(make):
            raise ValueError("it defines no function get_config")
        config = make(argument) if argument else make()
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise ValueError(f"its get_config returns a value of type {kind}, not a config")
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        number = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        said = str(error.msg if isinstance(error, SyntaxError) else error)
        # ml_collections passes a KeyError on, in its representation.
        said = " ".join(said.replace("\\n", " ").replace("\\'", "'").split())
        where = path if number is None else f"{path}, line {number}"
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{said}") from error
    return config


def find_experiment(file: str) -> str:
    """An experiment file of one's own, or else the shipped one of that name; with its argument.

    Raises:
        FileNotFoundError: there is neither.
    """
    path, colon, argument = file.partition(":")
    if pathlib.Path(path).is_file():
        return file
    if (found := experiment(path)) is not None:
        return f"{found}{colon}{argument}"
    raise FileNotFoundError(
        f"there is no file {path}, and no experiment of that name ships with the package; give the "
        f"path of an experiment file, relative to {pathlib.Path.cwd()}, or a name such as gsm8k"
    )


def changed_config(file: str, changes: Sequence[str]) -> tuple[ConfigDict, set[str]]:
    """The config of an experiment file with changes KEY=VALUE, and the keys that they set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a change cannot be read, or names a key that there is not.
    """
    config = load_config(file)
    keys = change(config, changes, " ".join((file, *changes)))
    config.lock()
    return config, set(keys)
