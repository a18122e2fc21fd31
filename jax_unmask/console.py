"""The commands of the package: `jax-unmask NAME`, or `python -m jax_unmask.NAME`.

Lists and help take no time: nothing is imported before a command runs. The flags in the help are
generated from the commands (`python -m jax_unmask.commands.help`).
"""

import ast
import contextlib
import errno
import importlib
import io
import json
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence

COMMANDS = (
    "train",
    "eval",
    "generate",
    "serve",
    "bench",
    "plan",
    "convert",
    "calibrate",
    "harness",
    "hub",
    "configs",
)
_PACKAGE = pathlib.Path(__file__).parent
_HELP = ("-h", "--help")
_LOST = (errno.EPIPE, errno.ENOSPC, errno.EIO)  # Of output, if they name no file.


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names; lists all without."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with _streams():
        if not arguments or arguments[0] in (*_HELP, "help"):
            sys.stdout.write(overview())
            return
        name = arguments[0]
        if name not in COMMANDS:
            from jax_unmask.notation import suggestion

            hint = suggestion(name, COMMANDS)
            sys.exit(f"error: there is no command {name!r}{hint}\n\n{overview()}")
    sys.argv = [f"jax-unmask {name}", *arguments[1:]]
    # As with `python -m`: tasks and policies of one's own are found where one works.
    here = os.getcwd()
    if not sys.flags.safe_path and not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    run(name)


def run(name: str) -> None:
    """Runs a command with the arguments in `sys.argv`; with --help alone, nothing is imported."""
    arguments = sys.argv[1:]
    with _streams():
        if arguments and all(argument in _HELP for argument in arguments):
            sys.stdout.write(help_of(name))
            return
        try:
            command = importlib.import_module(f"jax_unmask.commands.{name}")
        except ValueError as error:  # JAX reads its variables of the environment.
            sys.exit(f"error: {error}")
        if hasattr(command, "define_flags"):
            command_line = importlib.import_module("jax_unmask.commands.command_line")
            command_line.run(command.main, command.define_flags)
        else:
            command.main()


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard streams that can be used; output that cannot be written ends without a traceback."""
    _open_streams()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _LOST or error.filename is not None:
            raise
        sys.stdout = io.StringIO()  # What is left would be written at the end.
        # Quietly, where nobody reads on, as `head` does not.
        is_left = error.errno == errno.EPIPE
        sys.exit(128 + signal.SIGPIPE if is_left else f"error: standard output: {error}")


def _open_streams() -> None:
    """Opens standard streams that are closed, on nothing.

    The next file would take the number of one, and with it what libraries write to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It takes the lowest number that is free: this one.
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def overview() -> str:
    """The commands with a line for each."""
    lines = ["usage: jax-unmask COMMAND [ARGUMENTS]   (or python -m jax_unmask.COMMAND)", ""]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:{width}}  {_described(name)[0]}" for name in COMMANDS]
    lines += ["", "Begin with", "", "  jax-unmask train --config=quickstart", ""]
    lines += ["`jax-unmask COMMAND --help` has examples and all settings.", ""]
    return "\n".join(lines)


def help_of(name: str) -> str:
    """Summary, examples and flags of a command; with configs their keys and experiments too."""
    summary, rest = _described(name)
    flags = json.loads((_PACKAGE / "assets" / "help.json").read_text(encoding="utf-8"))
    parts = [f"{summary}\n", rest, flags[name]]
    if name in flags["configs of"]:
        parts += [f"Experiments (--config=NAME, or a file of your own):\n\n{experiments()}"]
        parts += [flags["keys"]]
    return "\n".join(part for part in parts if part)


def experiments() -> str:
    """The experiment files that ship with the package, with a line for each."""
    from jax_unmask.shipped import experiment

    folder = experiment("quickstart")
    files = sorted(folder.parent.glob("[!_]*.py")) if folder else []
    width = max((len(file.stem) for file in files), default=0)
    lines = [f"  {file.stem:{width}}  {_docstring(file).splitlines()[0]}" for file in files]
    return "\n".join(lines) + "\n"


def _described(name: str) -> tuple[str, str]:
    """Summary of a command, and the rest of its description."""
    first, _, rest = _docstring(_PACKAGE / f"{name}.py").partition("\n\n")
    examples = re.sub("^ *jax-unmask ", "  jax-unmask ", rest, flags=re.MULTILINE)
    return first, examples + "\n" if rest else ""


def _docstring(file: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "."
