"""Sweeps over the config itself: models, tasks, canvas lengths, and whatever else has a key.

`eval.axes` holds one line per axis; what is measured is every combination of them:

model.path=GSAI-ML/LLaDA-8B-Instruct|Dream-org/Dream-v0-Instruct-7B
rollout.gen_length=256|512
task.name=gsm8k,task.path=/data/gsm8k|task.name=math500,task.path=/data/math

The last axis changes task and path together.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from ml_collections import ConfigDict

from jax_unmask.runtime.config import ConfigError

_KEY = "eval.axes"
_FIXED = ("recipe", "eval.axes", "eval.after_training")


@dataclasses.dataclass(frozen=True)
class Combination:
    """One config of a sweep.

    Attributes:
        config: the config, with this combination's values.
        values: the values of this combination by key; empty without axes.
    """

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
    """The alternatives of one axis, all with the same keys."""
    alternatives: list[dict[str, Any]] = []
    first_key = line.partition("=")[0].strip()
    for text in line.split("|"):
        values: dict[str, Any] = {}
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if not equals and not values:
                # With one key, later alternatives need only the value.
                key, value = first_key, part
            values[key.strip()] = _value(config, line, key.strip(), value.strip())
        if alternatives and values.keys() != alternatives[0].keys():
            raise ConfigError(
                _KEY,
                line,
                f"{text!r} does not set the same keys as the first alternative",
                f"Set {', '.join(alternatives[0])}",
            )
        alternatives.append(values)
    return alternatives


def _value(config: ConfigDict, line: str, key: str, text: str) -> Any:
    """A value converted to the type that the config has at that key."""
    flat = config
    *path, name = key.split(".")
    for part in path:
        flat = flat.get(part) if isinstance(flat, ConfigDict) and part in flat else None
    if not isinstance(flat, ConfigDict) or name not in flat or key in _FIXED:
        raise ConfigError(
            _KEY,
            line,
            f"{key!r} is no key of this config that can vary",
            "Write KEY=A|B, such as rollout.gen_length=256|512",
        )
    kind = flat.get_type(name)
    if not text or kind not in (bool, int, float, str):
        raise ConfigError(
            _KEY, line, f"{key} cannot be set to {text!r} here", "Vary numbers and names"
        )
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif kind is str:
        return text
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise ConfigError(_KEY, line, f"{text!r} is no {kind.__name__}", f"Correct {key}")
