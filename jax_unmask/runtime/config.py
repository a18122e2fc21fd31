"""The record of a run's config in its workdir: what may be resumed there, and what may not."""

import fnmatch
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jax_unmask import notation
from jax_unmask.runtime import files
from jax_unmask.runtime.exports import EXPORTS
from jax_unmask.settings import ConfigError

RECORD = "config.json"


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of a configuration under dotted keys ("policy.network.hidden"), sorted by key."""
    flat: dict[str, Any] = {}
    for name in config:
        value = config[name]
        if isinstance(value, (ConfigDict, Mapping)):
            flat.update({f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return dict(sorted(flat.items()))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Groups of the values under dotted keys: `flatten` undone."""
    groups: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        group = groups
        for part in path:
            group = group.setdefault(part, {})
        group[name] = value
    return groups


def config_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The configuration as JSON with dotted keys, the same text for equal configurations.

    Raises:
        ConfigError: a value is neither None, bool, int, float, str nor a sequence of these.
    """
    flat = flatten(config)
    for key, value in flat.items():
        _require_plain(key, value)
    return json.dumps(flat, indent=2) + "\n"


_GROWS = "train.steps"


def require_directory(workdir: str | os.PathLike[str]) -> None:
    """Raises a `ConfigError` for a workdir that is a file."""
    place = pathlib.Path(workdir)
    if place.exists() and not place.is_dir():
        raise ConfigError("--workdir", str(workdir), "it is no directory", "Give another one")


def check_workdir(
    workdir: str | os.PathLike[str], config: ConfigDict, *, exempt: Sequence[str] = ()
) -> None:
    """Checks that a directory is free, or has a run of this configuration. Writes nothing.

    `train.steps` may have grown: a run that is finished goes on.

    Args:
        workdir: directory of the run; need not exist.
        config: the configuration that is about to run there.
        exempt: patterns of dotted keys that may differ, such as "log.*".

    Raises:
        ConfigError: the directory belongs to another configuration (names the keys that differ), or
            to one that cannot be told, because its record is damaged or gone.
    """
    require_directory(workdir)
    record = pathlib.Path(workdir) / RECORD
    remedy = f"Restore {RECORD} from a backup, or give another --workdir"
    if not record.exists():
        if _has_checkpoints(record.parent):
            problem = f"it has checkpoints, but no {RECORD} that says of which configuration"
            raise ConfigError("--workdir", str(workdir), problem, remedy)
        return
    files.require_file(record)
    try:
        saved = json.loads(record.read_bytes())
    except ValueError:
        saved = None
    if not isinstance(saved, dict):
        problem = f"its {RECORD} is damaged: it is no JSON object"
        raise ConfigError("--workdir", str(workdir), problem, remedy)
    current = json.loads(config_json(config))
    keys = sorted(saved.keys() | current.keys())
    absent = "absent"
    different = [
        f"{key} ({saved.get(key, absent)!r} there, {current.get(key, absent)!r} here)"
        for key in keys
        if saved.get(key, absent) != current.get(key, absent)
        and not any(fnmatch.fnmatchcase(key, pattern) for pattern in exempt)
        and not (key == _GROWS and saved.get(key, math.inf) < current.get(key, 0))
    ]
    if different:
        starts = [
            f"config.{each.key}={record.parent / each.directory}"
            for each in EXPORTS.values()
            if each.key in current and (record.parent / each.directory).is_dir()
        ]
        anew = f", to start from its result with {' or '.join(starts)}" if starts else ""
        problem = "it holds a run of another configuration; different are " + ", ".join(different)
        if current.get(_GROWS, math.inf) < saved.get(_GROWS, 0):
            problem += f". A run goes on with a higher {_GROWS}, never with a lower one"
        raise ConfigError(
            "--workdir",
            str(workdir),
            problem,
            f"Give another --workdir{anew}, or the old values to continue that run",
        )


def _has_checkpoints(workdir: pathlib.Path) -> bool:
    if not workdir.is_dir():
        return False
    from jax_unmask.runtime import checkpoints  # Loads Orbax.

    return bool(checkpoints.steps_in(workdir / checkpoints.DIRECTORY))


def claim_workdir(
    workdir: str | os.PathLike[str], config: ConfigDict, *, exempt: Sequence[str] = ()
) -> None:
    """Records the configuration in `workdir/config.json`, if `check_workdir` has no objection.

    Called once the configuration has proved to run, so that a run that failed at start does not
    keep its directory claimed.
    """
    check_workdir(workdir, config, exempt=exempt)
    if jax.process_index() == 0:
        files.atomic_write(pathlib.Path(workdir) / RECORD, config_json(config))


def _require_plain(key: str, value: object) -> None:
    if isinstance(value, (tuple, list)):
        for index, element in enumerate(value):
            _require_plain(f"{key}[{index}]", element)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise ConfigError(
            key,
            value,
            f"values of type {type(value).__name__} cannot be recorded",
            "Use numbers, strings, booleans, None, or tuples of them",
        )


def change(config: ConfigDict, words: Iterable[str], text: str) -> list[str]:
    """Sets keys of a config by words KEY=VALUE; `text` is the whole input, for errors.

    Returns:
        The keys, in their order.

    Raises:
        ValueError: a word has another form, or one names a key or a value that there is not.
    """
    given = notation.pairs(words, text)
    config.update_from_flattened_dict({k: read_value(config, k, v) for k, v in given.items()})
    return list(given)


def read_value(config: ConfigDict, key: str, text: str) -> Any:
    """The value that a text stands for under a dotted key, of the type that the key has there.

    Raises:
        ValueError: there is no such key, or the text is none of its values.
    """
    group: Any = config
    *path, name = key.split(".")
    for part in path:
        group = group.get(part) if isinstance(group, ConfigDict) else None
    if not isinstance(group, ConfigDict) or name not in group:
        raise ValueError(
            f"there is no key {key!r}. {notation.key_remedy(key, list(flatten(config)))}"
        )
    if text == "None":
        return None
    try:
        return notation.convert(text, group.get_type(name))
    except ValueError as error:
        raise ValueError(f"{key}={text} {error}") from error
