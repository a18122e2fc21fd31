"""Sweeps over the config itself: models, tasks, canvas lengths, and whatever else has a key.

`eval.axes` holds one line per axis; what is measured is every combination of them:

model.path=GSAI-ML/LLaDA-8B-Instruct|Dream-org/Dream-v0-Instruct-7B
rollout.gen_length=256|512
task.name=gsm8k,task.path=/data/gsm8k|task.name=math500,task.path=/data/math

The last axis changes task and path together.
"""

import itertools
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jax_unmask import notation
from jax_unmask.runtime.config import read_value
from jax_unmask.settings import ConfigError

_KEY = "eval.axes"
_FIXED = ("recipe", "eval.axes", "eval.after_training")


class Combination(NamedTuple):
    """One config of a sweep, and the values in it that the axes give, by key."""

    config: ConfigDict
    values: dict[str, Any]


def combinations(config: ConfigDict) -> list[Combination]:
    """Every combination of `config.eval.axes`, the last axis varying fastest.

    Raises:
        ConfigError: an axis cannot be read, or names a key that there is not.
    """
    axes = [_axis(config, line) for line in config.eval.axes]
    keys = [key for axis in axes for key in axis[0]]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConfigError(_KEY, config.eval.axes, f"{twice} is in two axes", "Give it to one")
    found = []
    for choice in itertools.product(*axes):
        values = {key: value for alternative in choice for key, value in alternative.items()}
        changed = config.copy_and_resolve_references()  # ConfigDict(config) shares what is nested.
        changed.update_from_flattened_dict(values)
        found.append(Combination(changed, values))
    return found


def _axis(config: ConfigDict, line: str) -> list[dict[str, Any]]:
    """The alternatives of one axis as values, all with the same keys."""
    found = []
    try:
        for alternative in notation.assignments(line):
            found.append({key: read_value(config, key, text) for key, text in alternative.items()})
            for key, value in found[-1].items():
                if key in _FIXED or not isinstance(value, (bool, int, float, str)):
                    raise ValueError(f"{key!r} is no key that can vary here: numbers and names can")
    except ValueError as error:
        remedy = "Write KEY=A|B, such as rollout.gen_length=256|512"
        raise ConfigError(_KEY, line, str(error), remedy) from error
    return found
