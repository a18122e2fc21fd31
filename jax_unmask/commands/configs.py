"""Lists experiment files, or prints one: `python -m jax_unmask.configs`."""

import sys

from jax_unmask.console import experiments
from jax_unmask.shipped import experiment


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        sys.stdout.write(experiments())
    for name in arguments:
        file = experiment(name)
        if file is None:
            sys.exit(f"error: there is no experiment {name!r}. There are:\n{experiments()}")
        sys.stdout.write(f"# {file}\n{file.read_text(encoding='utf-8')}")
