"""The process of the untrusted program, which serves the judge's calls and never has the tests."""

import builtins
import io
import sys
import types
from typing import Any

from .rpc import Endpoint

NAME = "solution"
_MAX_OUTPUT = 2**20


def serve(descriptor: int, source: str) -> None:
    """Runs the program when the judge asks for it, then serves its names.

    Args:
        descriptor: socket to the judge.
        source: the program.
    """
    module = types.ModuleType(NAME)
    # Dataclasses and others look their module up.
    sys.modules[NAME] = module
    endpoint = Endpoint(descriptor, trusts=True)
    output = _Output()
    sys.stdout = output
    endpoint.take_printed = output.take

    def load() -> None:
        exec(compile(source, f"<{NAME}>", "exec", dont_inherit=True), module.__dict__)

    def names(wanted: list[str]) -> dict[str, Any]:
        return {
            name: _describe(endpoint, module.__dict__[name])
            for name in wanted
            if name in module.__dict__
        }

    endpoint.serve(load=load, names=names)


class _Output(io.TextIOBase):
    """Standard output that goes back to the judge with each answer; what is too much is dropped."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = _MAX_OUTPUT

    def write(self, text: str) -> int:
        part = str(text)[: self._room]
        self._room -= len(part)
        if part:
            self._parts.append(part)
        return len(text)

    def take(self) -> str:
        """The output that was written since the last call."""
        parts, self._parts[:] = list(self._parts), []
        return "".join(parts)


def _describe(endpoint: Endpoint, value: Any) -> list[Any]:
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, type) and issubclass(value, BaseException):
        bases = [kind.__name__ for kind in value.__mro__ if hasattr(builtins, kind.__name__)]
        return ["exception", value.__name__, bases]
    return ["value", endpoint.encode(value)]
