"""Config, code and data of all processes of a run, which must be alike."""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import jax_unmask
from jax_unmask.settings import ConfigError

_SHOWN = 5


def of_run(config: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """The config of a run, keys that a resumed run may change included, its workdir and its code.

    Args:
        config: flat, see `runtime.config.flatten`.
        workdir: as it was given.
    """
    code = {"version of jax": jax.__version__, "source of jax_unmask": _source()}
    return {**config, "--workdir": str(workdir), **code}


@functools.cache
def _source() -> str:
    """Version and digest of the package's files."""
    digest, root = hashlib.sha256(), pathlib.Path(jax_unmask.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    try:
        version = importlib.metadata.version("jax_unmask")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return f"{version}, {digest.hexdigest()[:12]}"


def require_same(values: Mapping[str, Any]) -> None:
    """Compares values over all processes; to be called by all of them.

    Raises:
        ConfigError: they differ. The same error in all processes.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(dict(values), default=repr).encode()
    digests = _gathered(hashlib.sha256(text).digest())
    if len(set(digests)) == 1:
        return
    length = max(int.from_bytes(each, "big") for each in _gathered(len(text).to_bytes(8, "big")))
    every = [json.loads(each.decode()) for each in _gathered(text.ljust(length))]
    raise difference(every)


def difference(every: list[dict[str, Any]]) -> ConfigError:
    """The error about the values of processes that are not all alike."""
    first, absent = every[0], "absent"
    found = []
    for key in sorted({key for values in every for key in values}):
        for number, values in enumerate(every):
            mine, other = first.get(key, absent), values.get(key, absent)
            if mine != other:
                found.append((key, f"{key} ({mine!r} in process 0, {other!r} in process {number})"))
                break
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    listed = ", ".join(text for _, text in found[:_SHOWN])
    key = found[0][0]
    return ConfigError(
        key,
        first.get(key, absent),
        f"the processes of a run must be alike; different are {listed}{more}",
        "Start all of them with the same command, code and data",
    )


def _gathered(value: bytes) -> list[bytes]:
    """The bytes of all processes, as many of each."""
    every = multihost_utils.process_allgather(np.frombuffer(value, np.uint8))
    return [row.tobytes() for row in np.asarray(every)]
