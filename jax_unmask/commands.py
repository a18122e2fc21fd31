"""What the commands share: logging, the default workdir, errors without a traceback."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator

from absl import flags
from ml_collections import config_flags


def set_up_logging() -> None:
    """Sends the package's messages to standard error as they are; libraries only warn."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("jax_unmask").setLevel(logging.INFO)


def default_workdir(config_flag: str) -> pathlib.Path:
    """`runs/NAME` for the config file NAME.py of a `config_flags` flag, `runs/NAME-ARG` if it was
    given as NAME.py:ARG."""
    filename = config_flags.get_config_filename(flags.FLAGS[config_flag])
    path, _, argument = filename.partition(":")
    name = pathlib.Path(path).stem
    return pathlib.Path("runs") / (f"{name}-{argument}" if argument else name)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the process with the message alone where the input was wrong (status 1).

    Wrong input shows as ValueError (which `ConfigError` and `CheckpointError` are) or as a missing
    file. Anything else is a defect and keeps its traceback; so does everything at -v=1.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if flags.FLAGS.is_parsed() and flags.FLAGS.verbosity > 0:
            raise
        sys.exit(f"error: {error}")
