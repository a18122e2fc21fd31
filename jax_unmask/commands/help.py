"""Writes the flags of all commands, for their help.

`python -m jax_unmask.commands.help > jax_unmask/assets/help.json`
"""

import importlib
import json
import os
import unittest.mock

from absl import flags

from jax_unmask import recipes
from jax_unmask.console import COMMANDS
from jax_unmask.environment.settings import RunSettings
from jax_unmask.settings import Setting, declared

_WIDTH = "100"


def pages() -> dict[str, str | list[str]]:
    """The flags of each command; the names of those that take a config; the keys of configs."""
    found: dict[str, str | list[str]] = {}
    with_config = []
    for name in COMMANDS:
        command = importlib.import_module(f"jax_unmask.commands.{name}")
        if hasattr(command, "define_flags"):
            values = flags.FlagValues()
            command.define_flags(values)
            found[name] = _flags(values)
            with_config.append(name)
        elif hasattr(command, "parser"):
            with unittest.mock.patch.dict(os.environ, COLUMNS=_WIDTH, NO_COLOR="1"):
                found[name] = command.parser().format_help()
        else:
            found[name] = ""
    return {**found, "configs of": with_config, "keys": _keys()}


def _flags(values: flags.FlagValues) -> str:
    lines = ["flags:"]
    for name in sorted(values):
        if name.startswith("config") and name != "config":
            continue
        flag = values[name]
        default = "" if flag.default is None or name == "config" else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines) + "\n"


def _keys() -> str:
    """All keys: those of every run, then for each recipe its own and those that differ."""
    common = declared(RunSettings())
    known = {(each.key, each.default) for each in common}
    parts = ["Keys of every config (--config.KEY=VALUE):\n", *map(_line, common)]
    for name in recipes.RECIPES:
        parts.append(f"\nKeys of recipe {name}:\n")
        own = [each for each in declared(recipes.defaults(name)) if each.key != "recipe"]
        parts += [_line(each) for each in own if (each.key, each.default) not in known]
    return "\n".join(parts) + "\n"


def _line(each: Setting) -> str:
    values = f"; {each.range_text}" if each.range_text else ""
    return f"  {each.key} = {each.default!r} ({each.type_name}{values})\n      {each.help}"


if __name__ == "__main__":
    print(json.dumps(pages(), indent=1))
