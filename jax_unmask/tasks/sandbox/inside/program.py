"""The process that holds the untrusted program. It answers the judge and knows no tests."""

from __future__ import annotations

import builtins
import sys
import types
from typing import Any

from .rpc import Endpoint

NAME = "solution"


def serve(descriptor: int, source: str) -> None:
    """Runs the program when the judge asks for it, then serves its names.

    Args:
        descriptor: socket to the judge.
        source: the program.
    """
    module = types.ModuleType(NAME)
    # Dataclasses and others look their module up.
    sys.modules[NAME] = module
    endpoint = Endpoint(descriptor, open_names=True)

    def load() -> None:
        exec(compile(source, f"<{NAME}>", "exec", dont_inherit=True), module.__dict__)

    def names(wanted: list[str]) -> dict[str, Any]:
        return {
            name: _describe(endpoint, module.__dict__[name])
            for name in wanted
            if name in module.__dict__
        }

    endpoint.serve(load=load, names=names)


def _describe(endpoint: Endpoint, value: Any) -> list[Any]:
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, type) and issubclass(value, BaseException):
        bases = [kind.__name__ for kind in value.__mro__ if hasattr(builtins, kind.__name__)]
        return ["exception", value.__name__, bases]
    return ["value", endpoint.encode(value)]
