"""Text of others (models, files, servers) for terminals, which obey control characters."""

from __future__ import annotations

import re

# Control characters, lone surrogates, separators of lines, and what turns the direction of text.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def harmless(text: str, keep: str = "\n\t") -> str:
    r"""The text with what a terminal would obey as escape sequences, but for some characters.

    >>> harmless("a\x1b]0;title\x07\tb\n") == "a\\x1b]0;title\\x07\tb\n"
    True
    """
    return _OBEYED.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)
