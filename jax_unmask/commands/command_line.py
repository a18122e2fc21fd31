"""Code that all commands share: flags, logging, the default workdir, errors without a traceback."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags
from ml_collections import config_flags

from jax_unmask.runtime import distributed

# Exceptions that wrong input raises: `ConfigError` and `CheckpointError` are ValueErrors, paths
# that do not fit are OSErrors, an extra that is not installed is an ImportError, and lost numbers
# end training with a FloatingPointError. Anything else is a defect and keeps its traceback.
_EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)
_CONFIG_FLAG = re.compile(r"--?config(?:=(?P<value>.*))?")


def run(main: Callable[[list[str]], None], define_flags: Callable[[], None]) -> None:
    """`absl.app.run`, where a mistake in the flags or the config file is one line as well."""
    others = set(flags.FLAGS)
    define_flags()
    for name in set(flags.FLAGS) - others:  # So that `--help` shows them: the program's own.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags of a command whose experiment file is `--config`.

    Returns:
        What is left of the arguments, the name of the program first.

    Raises:
        SystemExit: a flag or the experiment file is wrong; with the message.
    """
    argv = list(argv)
    _require_config_file(argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if any(line.startswith("Traceback") for line in lines):
            # The experiment file raised; its own words come last.
            lines = [lines[0], lines[-1]]
        sys.exit(f"error: {' '.join(lines)}")
    except AttributeError as error:
        # From ml_collections, which says: 'gen_lenght' Did you mean "gen_length" instead of ...
        name, close = re.search(r"\w+", str(error)), re.search(r'you mean "(\w+)"', str(error))
        pattern = rf"--?config\.(.*\.)?{name.group() if name else ''}(=|$)"
        given = [argument for argument in argv if re.match(pattern, argument)]
        if not given:
            raise
        hint = "Keys and their defaults are in jax_unmask/config/."
        if close:
            hint = f"Did you mean {close.group(1)!r}?"
        sys.exit(f"error: {given[0].partition('=')[0]}: there is no such key. {hint}")


def _require_config_file(argv: Sequence[str]) -> None:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := _CONFIG_FLAG.fullmatch(argument):
            value = following if match["value"] is None else match["value"]
            path = pathlib.Path(value.partition(":")[0])
            if not path.is_file():
                sys.exit(
                    f"error: --config={value}: there is no file {path}; give the path of an "
                    f"experiment file, relative to {pathlib.Path.cwd()}"
                )


def set_up_logging() -> None:
    """Sends the package's messages to standard error without prefix; libraries only warn."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("jax_unmask").setLevel(logging.INFO)


def define_process_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags that join several processes into one run; see `runtime.distributed.initialize`."""
    flags.DEFINE_string(
        "coordinator",
        None,
        f"Of a run of several processes: HOST:PORT of process 0 (default: ${distributed.ADDRESS}, "
        "or what the cluster says).",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, f"How many (default: ${distributed.COUNT}).", flag_values=values
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        f"Number of this one, from 0 (default: ${distributed.INDEX}).",
        flag_values=values,
    )


def join_processes() -> None:
    """Joins the processes of a run, found by flags, environment or cluster. Before any use of JAX.

    Raises:
        ValueError: they contradict each other, or are incomplete.
    """
    values = flags.FLAGS
    distributed.initialize(values.coordinator, values.num_processes, values.process_id)


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

    At -v=1 the traceback is shown as well.
    """
    try:
        yield
    except _EXPECTED as error:
        if flags.FLAGS.is_parsed() and flags.FLAGS.verbosity > 0:
            raise
        sys.exit(f"error: {error}")
