"""Code that all commands share: flags, logging, the default workdir, errors without a traceback."""

import argparse
import contextlib
import itertools
import logging
import math
import pathlib
import re
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from jax_unmask import recipes, tasks
from jax_unmask.notation import key_remedy
from jax_unmask.recipes.experiments import find_experiment, load_config
from jax_unmask.runtime import compilation, distributed
from jax_unmask.runtime.config import flatten
from jax_unmask.runtime.terminal import harmless
from jax_unmask.settings import (
    ConfigError,
    FlagError,
    SettingError,
    Settings,
    declared,
    help_text,
    naming,
)
from jax_unmask.tasks.base import Task

# Exceptions that wrong input raises: `ConfigError` and `CheckpointError` are ValueErrors, paths
# that do not fit are OSErrors, an extra that is not installed is an ImportError, and lost numbers
# end training with a FloatingPointError. Anything else is a defect and keeps its traceback.
_EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)
# Of JAX: JAX_PLATFORMS names none that there is, or its driver does not work.
_NO_DEVICES = "Unable to initialize backend"
_CONFIG_FLAG = re.compile(r"--?config(?:=(?P<value>.*))?")
_Kind = TypeVar("_Kind", bound=Settings)


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
    argv, file = list(argv), _config_file(argv)
    try:
        if file:
            # ml_collections reads files only.
            place = next(i for i, each in enumerate(argv) if _CONFIG_FLAG.fullmatch(each))
            given = slice(place, place + (1 if "=" in argv[place] else 2))
            argv[given] = [f"--config={find_experiment(file)}"]
        if any(re.fullmatch("--?h(elp(full|short)?)?", argument) for argument in argv):
            _print_settings(file)
    except FileNotFoundError as error:
        sys.exit(f"error: --config={harmless(f'{file}: {error}')}")
    except ConfigError as error:
        sys.exit(f"error: {harmless(str(error))}")
    except ValueError as error:
        sys.exit(f"error: --config={harmless(str(error))}")
    try:
        rest: list[str] = flags.FLAGS(argv)
        if file and not isinstance(flags.FLAGS.config, ConfigDict):
            raise TypeError("no config")
        return rest
    except Exception as error:
        # Whatever the experiment file raises, or ml_collections about a key that there is not.
        try:
            known = list(flatten(load_config(file))) if file else []
        except ValueError as wrong:
            sys.exit(f"error: --config={harmless(str(wrong))}")
        if isinstance(error, flags.Error):
            sys.exit(f"error: {harmless(' '.join(str(error).split()))}")
        for argument in argv:
            match = re.match(r"--?config\.([\w.]+)", argument)
            if match and match[1] not in known:
                hint = key_remedy(match[1], known)
                sys.exit(f"error: --config.{match[1]}: there is no such key. {hint}")
        raise


def _config_file(argv: Sequence[str]) -> str:
    """The value of `--config`; empty without one."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := _CONFIG_FLAG.fullmatch(argument):
            return following if match["value"] is None else str(match["value"])
    return ""


def _print_settings(file: str) -> None:
    """Prints the settings of an experiment file, for `--help`."""
    if not file:
        print("Settings: --config.KEY=VALUE. With --config=FILE.py, --help lists them.\n")
        return
    print(f"Settings of {file}:\n\n{help_text(recipes.parse(load_config(file)))}")


def set_up_logging() -> None:
    """Sends the package's messages to standard error without prefix; libraries only warn."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("jax_unmask").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_no_traceback_of_a_library)
    threading.excepthook = _say_what_ended_a_thread
    sys.unraisablehook = _say_what_nobody_can_catch
    # Where one read of a checkpoint fails, Orbax drops the others.
    warnings.filterwarnings("ignore", "coroutine '_read_array_index_and_device_put' was never")


def _is_no_traceback_of_a_library(record: logging.LogRecord) -> bool:
    """Leaves out what threads of Orbax log of errors that also reach the caller, at -v=0."""
    return not (record.exc_info and record.name in ("absl", "asyncio") and not _is_verbose())


def _say_what_ended_a_thread(given: threading.ExceptHookArgs) -> None:
    if isinstance(given.exc_value, OSError) and not _is_verbose():
        name = given.thread.name if given.thread is not None else "?"
        logging.getLogger(__name__).error("Thread %s ended: %s", name, given.exc_value)
    else:
        threading.__excepthook__(given)


def _say_what_nobody_can_catch(given: "sys.UnraisableHookArgs") -> None:
    """Leaves out writes and reads of Orbax that end after the error that ended all, at -v=0."""
    if str(given.exc_value) != "Event loop is closed" or _is_verbose():
        sys.__unraisablehook__(given)


def _is_verbose() -> bool:
    return bool(flags.FLAGS.is_parsed() and flags.FLAGS.verbosity > 0)


def begin(argv: Sequence[str]) -> None:
    """Sets up a command that takes nothing but flags."""
    if len(argv) > 1:
        given = harmless(" ".join(argv[1:]))
        sys.exit(f"error: {given}: only flags are taken; settings are --config.KEY=VALUE")
    _set_up("config" in flags.FLAGS and is_quantized(flags.FLAGS.config))


def is_quantized(config: ConfigDict) -> bool:
    """Whether a denoiser's weights have one byte, in an environment or a stage maybe."""
    lines = " ".join((*config.get("environments", ()), *config.get("stages", ())))
    return config.get("model", {}).get("quantization") is not None or any(
        kind != "None" for kind in re.findall(r"model\.quantization=(\w+)", lines)
    )


@contextlib.contextmanager
def parsed(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> Iterator[argparse.Namespace]:
    """The arguments of a command, which is set up; mistakes in the block are as in `clear_errors`.

    Args:
        parser: of the command.
        arguments: None for those of the process.
    """
    args = parser.parse_args(arguments)
    _set_up(getattr(args, "quantization", None) is not None)
    with clear_errors(args):
        yield args


def _set_up(quantized: bool) -> None:
    """Sets up logging, the compile cache and the compiler."""
    set_up_logging()
    compilation.enable_cache()
    compilation.choose_flags(quantized)


class Parser(argparse.ArgumentParser):
    """Arguments of a command; a mistake in them is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {harmless(message)}; --help lists the arguments\n")


def add_settings(
    add: Callable[..., Any], *groups: Settings, names: Collection[str] | None = None
) -> None:
    """Adds an argument for each declared setting, or for those with these names.

    Args:
        add: method `add_argument` of a parser, or of a group.
        groups: settings at their defaults.
        names: of the settings; None for all.
    """
    for each in itertools.chain(*map(declared, groups)):
        if names is not None and each.key not in names:
            continue
        how: dict[str, Any] = {"type": each.kind, "default": each.default}
        shown = each.default
        if each.kind is bool:
            how, shown = {"action": "store_true"}, "no"
        elif each.kind is not str:
            shown = f"{each.default:.10g}"
        add(f"--{each.key}", **how, help=f"{each.help} ({shown})".replace("%", "%%"))


def given(kind: type[_Kind], args: argparse.Namespace) -> _Kind:
    """The settings of a class as the arguments of `add_settings` have them."""
    return kind(**{each.key: getattr(args, each.key) for each in declared(kind())})


def parse_task(args: argparse.Namespace) -> Task:
    """The task of `--task` and `--data`."""
    with naming_task(args):
        task = tasks.parse(args.task, args.data)
    return task


def naming_task(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Names `--task`, or `--data` where that is given, in mistakes of a task and its data."""
    key = "task" if args.data is None else "data"
    return naming(key, getattr(args, key), kind=FlagError)


def numbers(
    args: argparse.Namespace, name: str, kind: type, *, least: float = -math.inf
) -> list[Any]:
    """The numbers of an argument, separated by commas, none of which may be below the least.

    Raises:
        FlagError: it is no such list.
    """
    text = getattr(args, name)
    try:
        found = [] if text is None else [kind(each) for each in text.split(",")]
    except ValueError:
        remedy = "Give numbers separated by commas"
        raise FlagError(name, text, "it cannot be read", remedy) from None
    if found and min(found) < least:
        raise FlagError(name, text, f"a number is below {least}", "Correct it")
    return found


def check_count(args: argparse.Namespace, name: str) -> None:
    """Raises a `FlagError` unless an argument that counts something is in its range, or absent."""
    value = getattr(args, name)
    if value is not None and not 1 <= value <= 2**20:
        raise FlagError(name, value, "it is out of range", f"Give at least 1, at most {2**20:,}")


def seed(text: str) -> int:
    """The value of an argument `--seed`, a number of 32 bits."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return int(text)


def define_config_flag(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flag of the experiment file, `--config`, which is required."""
    config_flags.DEFINE_config_file(
        "config", None, "Experiment file.", lock_config=True, flag_values=values
    )
    flags.mark_flag_as_required("config", flag_values=values)


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
def clear_errors(args: argparse.Namespace | None = None) -> Iterator[None]:
    """Ends the process with the message alone where the input was wrong (status 1).

    At -v=1 the traceback is shown as well. Settings that are among `args` are named as there.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)  # As shells report it.
    except (*_EXPECTED, RuntimeError) as error:
        is_expected = isinstance(error, _EXPECTED) or str(error).startswith(_NO_DEVICES)
        if _is_verbose() or not is_expected:
            raise
        if type(error) is SettingError and hasattr(args, error.key):
            error = FlagError(error.key, error.value, error.problem, error.remedy)
        sys.exit(f"error: {harmless(str(error))}")
