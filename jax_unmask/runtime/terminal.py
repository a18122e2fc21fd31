"""Text of others (models, files, servers) for terminals, which obey control characters."""

import io
import logging
import re
import shlex
import sys
from collections.abc import Sequence

# Control characters, lone surrogates, separators of lines, and what turns the direction of text.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def harmless(text: str) -> str:
    r"""The text with what a terminal would obey as escape sequences, but for tabs and line feeds.

    >>> harmless("a\x1b]0;title\x07\tb\n") == "a\\x1b]0;title\\x07\tb\n"
    True
    """
    return _OBEYED.sub(lambda match: match[0] if match[0] in "\n\t" else repr(match[0])[1:-1], text)


_MOST_LINES = 5


def size_text(size: float) -> str:
    """A number of bytes in the unit that shows it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} bytes"


def verdict(found: Sequence[str], *, places: str = "", then: Sequence[object] = ()) -> list[str]:
    """The last lines of a command: findings, where more is, and the command that goes on.

    >>> verdict(["5 of 8 right"], places="Page: r.html", then=["generate", "--prompt=1 ="])
    ['5 of 8 right', 'Page: r.html', "Next: jax-unmask generate '--prompt=1 ='"]

    Args:
        found: a line each; what is more than five lines in all is counted.
        places: where to read more.
        then: a command of the package with its arguments; None among them are left out.
    """
    ending = [places] if places else []
    if words := [str(word) for word in then if word is not None]:
        ending.append(f"Next: {shlex.join(['jax-unmask', *words])}")
    lines, most = list(found), _MOST_LINES - len(ending)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"... and {len(lines) - most + 1} more."]
    return [*lines, *ending]


def conclude(lines: Sequence[str]) -> None:
    """Prints a verdict. What it is about is done, so that a lost output is no error."""
    try:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = io.StringIO()
        logging.getLogger(__name__).warning("The result cannot be printed: %s", error)
