"""A conversation: each line of standard input is a message, or a command."""

import sys
from collections.abc import Callable, Iterator

Messages = list[dict[str, str]]

_HELP = """\
/reset         forget the conversation; the system prompt stays
/system TEXT   a new system prompt (none without TEXT), and forget the conversation
/undo          take back the last message and its answer
/help          this list
Ctrl-D ends. A message that begins with / is written with two of them.
"""


def system_turn(text: str | None) -> Messages:
    """The messages that a conversation begins with."""
    return [] if text is None else [{"role": "system", "content": text}]


def converse(system: str | None, answer: Callable[[Messages], str]) -> None:
    """Answers the lines of standard input until it ends; `answer` writes and returns an answer."""
    messages = system_turn(system)
    for line in _lines():
        if line.startswith("/") and not line.startswith("//"):
            messages = _command(line, messages)
            continue
        messages.append({"role": "user", "content": line.removeprefix("/")})
        messages.append({"role": "assistant", "content": answer(list(messages))})


def _command(line: str, messages: Messages) -> Messages:
    """The conversation after a command."""
    name, _, rest = line.partition(" ")
    if name == "/reset":
        return [message for message in messages if message["role"] == "system"]
    if name == "/system":
        return system_turn(rest.strip() or None)
    if name == "/undo":
        return messages[:-2] if messages and messages[-1]["role"] == "assistant" else messages
    sys.stderr.write(_HELP if name == "/help" else f"there is no command {name}:\n{_HELP}")
    return messages


def _lines() -> Iterator[str]:
    """The lines that are not empty; in a terminal, each is asked for."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
