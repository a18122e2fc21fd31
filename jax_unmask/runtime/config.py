"""Checking of `ml_collections` configurations: each mistake is one error before anything compiles.

`validate` compares a configuration with its defaults (names and types); the functions after it
check values and relations. All raise `ConfigError`, which names key, value and remedy.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jax_unmask import notation
from jax_unmask.runtime import files
from jax_unmask.settings import ConfigError as ConfigError

RECORD = "config.json"

# Types that are accepted for a default of this type. (Flags give ints for floats; JSON has no
# tuples.)
_ACCEPTS: dict[type, tuple[type, ...]] = {
    float: (float, int),
    int: (int,),
    bool: (bool,),
    str: (str,),
    tuple: (tuple, list),
    list: (tuple, list),
}


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


def config_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The configuration as JSON with dotted keys, the same text for equal configurations.

    Raises:
        ConfigError: a value is neither None, bool, int, float, str nor a sequence of these.
    """
    flat = flatten(config)
    for key, value in flat.items():
        _require_plain(key, value)
    return json.dumps(flat, indent=2) + "\n"


def fingerprint(config: ConfigDict | Mapping[str, Any], *, exempt: Sequence[str] = ()) -> str:
    """SHA-256 (64 hexadecimal digits) of the configuration without its exempt keys.

    Args:
        config: the configuration.
        exempt: patterns of dotted keys that do not change what a run computes, such as "log.*".
    """
    kept = {key: value for key, value in flatten(config).items() if not _matches(key, exempt)}
    return hashlib.sha256(config_json(kept).encode()).hexdigest()


def check_workdir(
    workdir: str | os.PathLike[str], config: ConfigDict, *, exempt: Sequence[str] = ()
) -> None:
    """Checks that a directory is free, or has a run of this configuration. Writes nothing.

    Args:
        workdir: directory of the run; need not exist.
        config: the configuration that is about to run there.
        exempt: patterns of dotted keys that may differ, such as "log.*".

    Raises:
        ConfigError: the directory belongs to another configuration; names the keys that differ.
    """
    record = pathlib.Path(workdir) / RECORD
    if not record.exists():
        return
    saved, current = json.loads(record.read_text()), json.loads(config_json(config))
    keys = sorted(saved.keys() | current.keys())
    absent = "absent"
    different = [
        f"{key} ({saved.get(key, absent)!r} there, {current.get(key, absent)!r} here)"
        for key in keys
        if saved.get(key, absent) != current.get(key, absent) and not _matches(key, exempt)
    ]
    if different:
        raise ConfigError(
            "--workdir",
            str(workdir),
            "it holds a run of another configuration; different are " + ", ".join(different),
            "Give another --workdir, or the old values to continue that run",
        )


def claim_workdir(
    workdir: str | os.PathLike[str], config: ConfigDict, *, exempt: Sequence[str] = ()
) -> None:
    """Records the configuration in `workdir/config.json`, if `check_workdir` has no objection.

    Call it once the configuration has proved to run. Then a run that failed at start does not keep
    its directory claimed when its mistake is corrected.

    Args: as of `check_workdir`; the directory is made where it does not exist.

    Raises:
        ConfigError: the directory belongs to another configuration; names the keys that differ.
    """
    check_workdir(workdir, config, exempt=exempt)
    if jax.process_index() == 0:
        files.atomic_write(pathlib.Path(workdir) / RECORD, config_json(config))


def validate(config: ConfigDict, defaults: ConfigDict) -> None:
    """Checks that a configuration has the names and types of its defaults.

    An int may stand for a float, a list for a tuple (elements as the default's first). A default of
    None takes anything plain, unless it is a typed placeholder. A key that defaults have and the
    configuration lacks is an error too, so that later reads cannot fail.

    Raises:
        ConfigError: the first unknown, missing or mistyped key.
    """
    _validate(config, defaults, prefix="")


def _validate(config: ConfigDict, defaults: ConfigDict, prefix: str) -> None:
    for name in config:
        key = prefix + name
        value = config[name]
        if name not in defaults:
            raise ConfigError(key, value, "there is no such key", _suggestion(name, defaults))
        default = defaults[name]
        if isinstance(default, ConfigDict) != isinstance(value, ConfigDict):
            shape = "a group of keys" if isinstance(default, ConfigDict) else "a single value"
            raise ConfigError(key, value, f"{key} is {shape}", "Write it as configs/ does")
        if isinstance(default, ConfigDict):
            _validate(value, default, prefix=f"{key}.")
        else:
            _check_type(key, value, default, defaults.get_type(name))
    for name in defaults:
        if name not in config:
            raise ConfigError(
                prefix + name, None, "the key is missing", f"Its default is {defaults[name]!r}"
            )


def _suggestion(name: str, defaults: ConfigDict) -> str:
    close = difflib.get_close_matches(name, list(defaults), n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Known here are: " + ", ".join(sorted(defaults))


def _check_type(key: str, value: object, default: object, kind: type) -> None:
    _require_plain(key, value)
    if value is None:
        if default is not None:
            raise ConfigError(key, value, f"it needs a value of type {kind.__name__}", "Give one")
        return
    if kind is type(None):
        return
    accepted = _ACCEPTS.get(kind, (kind,))
    is_bool_for_number = isinstance(value, bool) and kind is not bool
    if not isinstance(value, accepted) or is_bool_for_number:
        raise ConfigError(
            key,
            value,
            f"it is of type {type(value).__name__}, {kind.__name__} is needed",
            f"The default is {default!r}",
        )
    if isinstance(default, (tuple, list)) and default:
        assert isinstance(value, (tuple, list))
        for index, element in enumerate(value):
            _check_type(f"{key}[{index}]", element, default[0], type(default[0]))


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


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


# ----------------------------------------------------------------------------- values and relations


def get(config: ConfigDict, key: str) -> Any:
    """The value under a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


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
        known = [other for other in flatten(config) if other.endswith(name)] or flatten(config)
        raise ValueError(f"there is no key {key!r}{notation.suggestion(key, known)}")
    if text == "None":
        return None
    try:
        return notation.convert(text, group.get_type(name))
    except ValueError as error:
        raise ValueError(f"{key}={text} {error}") from error


def require(condition: bool, config: ConfigDict, key: str, problem: str, remedy: str) -> None:
    """Raises `ConfigError` about a key unless the condition holds."""
    if not condition:
        raise ConfigError(key, get(config, key), problem, remedy)


def positive(config: ConfigDict, *keys: str) -> None:
    """Values must be greater than zero."""
    for key in keys:
        require(get(config, key) > 0, config, key, "it must be positive", "Give a number above 0")


def non_negative(config: ConfigDict, *keys: str) -> None:
    """Values must be zero or more."""
    for key in keys:
        require(get(config, key) >= 0, config, key, "it must not be negative", "Give 0 or more")


def within(config: ConfigDict, key: str, low: float, high: float) -> None:
    """A value must lie in the closed interval [low, high]; NaN does not."""
    require(
        low <= get(config, key) <= high,
        config,
        key,
        f"it must lie between {low} and {high}",
        "Give a value in that range, bounds included",
    )


def one_of(config: ConfigDict, key: str, choices: Sequence[Any]) -> None:
    """A value must be one of a few."""
    value = get(config, key)
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    listed = ", ".join(map(repr, choices))
    remedy = f"Choose one of {listed}" + (f" (did you mean {close[0]!r}?)" if close else "")
    require(value in choices, config, key, "there is no such choice", remedy)


def divides(config: ConfigDict, divisor: str, dividend: str) -> None:
    """The value of one key must divide the value of another; both must be positive integers."""
    positive(config, divisor, dividend)
    small, large = get(config, divisor), get(config, dividend)
    if large % small == 0:
        return
    below, above = large // small * small, (large // small + 1) * small
    fitting = " or ".join(str(number) for number in (below, above) if number)
    raise ConfigError(
        divisor,
        small,
        f"it must divide config.{dividend} = {large}",
        f"Change one of them; with {divisor} = {small}, {dividend} could be {fitting}",
    )


def at_most(config: ConfigDict, smaller: str, larger: str) -> None:
    """The value of one key must not exceed the value of another."""
    low, high = get(config, smaller), get(config, larger)
    require(
        low <= high,
        config,
        smaller,
        f"it must not exceed config.{larger} = {high}",
        f"Lower {smaller} or raise {larger}",
    )


def existing_path(config: ConfigDict, key: str) -> None:
    """A value must be the path of a file or directory that exists."""
    value = get(config, key)
    require(
        bool(value) and pathlib.Path(value).expanduser().exists(),
        config,
        key,
        "there is no such file or directory",
        f"Give a path that exists; relative paths start at {pathlib.Path.cwd()}",
    )
