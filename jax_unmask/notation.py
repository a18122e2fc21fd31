"""The notation of everything that configs and commands name by a string, and tables of names.

    NAME                                  threshold
    NAME:SETTING=VALUE,SETTING=VALUE      dual:refresh_every=8,extra_tokens=16
    NAME:TARGET,SETTING=VALUE             learned:DIR,temperature=0.5

NAME is an alias from a table of `Names`, or an import path, `package.module.Name`. A sweep may give
several values, and end with the only block lengths to measure:

    SETTING=A|B                           threshold:threshold=0.5|0.7|0.9
    SETTING=LOW..HIGH/STEP                threshold:threshold=0.5..0.9/0.1   (both ends)
    ...@LENGTH|LENGTH                     threshold:threshold=0.9@16|32
    KEY=A,OTHER=B|KEY=C,OTHER=D           task.name=gsm8k,task.path=/a|task.name=math,task.path=/b

Bands and mixtures of tasks:

    FIELD:LOW..HIGH, FIELD:A|B            level:3..5, difficulty:Easy|Medium
    NAME=WEIGHT                           math=0.5

A value has the type that the setting declares.
"""

import ast
import dataclasses
import decimal
import difflib
import importlib
import inspect
import itertools
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

_BLOCKS = re.compile(r"(?P<rest>.*)@(?P<blocks>\d+(\|\d+)*)")
_RANGE = re.compile(r"(?P<low>[\d.]+?)\.\.(?P<high>[\d.]+)/(?P<step>[\d.]+)")
_MAX_RANGE = 1000
# "dual:refresh_every=8" is a value, "task.path=/data" a key with one.
_ASSIGNMENT = re.compile(r"\s*(?P<key>[\w.]+)\s*=(?P<value>.*)", re.DOTALL)
_PLAIN = (bool, int, float, str)


class NotationError(ValueError):
    """A string of the notation cannot be read, or names something that does not exist.

    Args:
        text: the string.
        problem: what is wrong with it.
    """

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(f"{text!r}: {problem}")
        self.problem = problem


@dataclasses.dataclass(frozen=True)
class Spec:
    """A name with its settings, as written.

    Attributes:
        name: what stands before the first colon, e.g. "threshold" or "learned".
        target: what the name is applied to, such as the directory of "learned:DIR"; "" for none.
        settings: pairs of a setting's name and the text of its value.
        block_lengths: the only block lengths to measure it at; empty for all.
    """

    name: str
    target: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    block_lengths: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The notation, without the block lengths.

        >>> Spec("learned", "DIR", (("temperature", "0.5"),)).text
        'learned:DIR,temperature=0.5'
        """
        parts = [self.target] if self.target else []
        parts += [f"{name}={value}" for name, value in self.settings]
        return f"{self.name}:{','.join(parts)}" if parts else self.name

    def arguments(self, kinds: Mapping[str, Any]) -> dict[str, Any]:
        """The settings as values.

        Args:
            kinds: type of each setting that there is.

        Raises:
            NotationError: there is no such setting, or a value is not of its type.
        """
        values = {}
        for name, text in self.settings:
            if name not in kinds:
                raise NotationError(self.text, f"no setting {name!r}{suggestion(name, kinds)}")
            try:
                values[name] = convert(text, kinds[name])
            except ValueError as error:
                raise NotationError(self.text, f"{name}={text} {error}") from error
        return values


def parse(text: str) -> Spec:
    """Reads NAME, NAME:SETTING=VALUE,... or NAME:TARGET,SETTING=VALUE,...

    >>> parse("learned:DIR,temperature=0.5")
    Spec(name='learned', target='DIR', settings=(('temperature', '0.5'),), block_lengths=())

    Raises:
        NotationError: the text cannot be read.
    """
    name, _, rest = text.partition(":")
    if not name.strip():
        raise NotationError(text, "no name; write NAME:SETTING=VALUE, e.g. threshold:threshold=0.9")
    pieces, target = [piece.strip() for piece in rest.split(",") if piece.strip()], ""
    if pieces and "=" not in pieces[0]:
        target = pieces.pop(0)
    return Spec(name.strip(), target, tuple(pairs(pieces, text).items()))


def expand(text: str) -> list[Spec]:
    """Every setting that a line of the notation stands for, the last setting varying fastest.

    >>> [spec.text for spec in expand("threshold:threshold=0.5..0.7/0.1|0.95")][1:]
    ['threshold:threshold=0.6', 'threshold:threshold=0.7', 'threshold:threshold=0.95']

    Raises:
        NotationError: the text cannot be read.
    """
    blocks: tuple[int, ...] = ()
    rest = text.strip()
    if match := _BLOCKS.fullmatch(rest):
        rest = match["rest"]
        blocks = tuple(int(block) for block in match["blocks"].split("|"))
    spec = parse(rest)
    choices = [alternatives(values, text) for _, values in spec.settings]
    names = [name for name, _ in spec.settings]
    return [
        Spec(spec.name, spec.target, tuple(zip(names, values, strict=True)), blocks)
        for values in itertools.product(*choices)
    ]


def pairs(words: Iterable[str], text: str) -> dict[str, str]:
    """Reads words of the form SETTING=VALUE; `text` is the whole input, for errors.

    Raises:
        NotationError: one has another form, or a setting is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, value = (piece.strip() for piece in word.partition("="))
        if not name or not value:
            raise NotationError(text, f"{word!r} is not of the form SETTING=VALUE")
        if name in found:
            raise NotationError(text, f"{name} is given twice")
        found[name] = value
    return found


def assignments(line: str) -> list[dict[str, str]]:
    """The alternatives of KEY=A|B, or of several keys together, KEY=A,OTHER=B|KEY=C,OTHER=D.

    >>> assignments("task.name=math,task.path=/a|task.name=gsm8k,task.path=/b")[1]
    {'task.name': 'gsm8k', 'task.path': '/b'}

    Raises:
        NotationError: the line cannot be read, or its alternatives set different keys.
    """
    first = _ASSIGNMENT.fullmatch(line)
    if first is None:
        raise NotationError(line, "write KEY=A|B, such as rollout.gen_length=256|512")
    found: list[dict[str, str]] = []
    for choice in alternatives(first["value"], line):
        words = [word.strip() for word in choice.split(",")]
        if not _ASSIGNMENT.match(words[0]):
            words[0] = f"{first['key']}={words[0]}"
        found.append(pairs(words, line))
        if found[-1].keys() != found[0].keys():
            raise NotationError(line, f"{choice!r} does not set {', '.join(found[0])}")
    return found


def alternatives(values: str, text: str | None = None) -> list[str]:
    """The values of A|B|LOW..HIGH/STEP; `text` is the whole input, for errors.

    >>> alternatives("0.1..0.3/0.1|0.95")
    ['0.1', '0.2', '0.3', '0.95']

    Raises:
        NotationError: a value is empty, or a range has no or too many values.
    """
    text = values if text is None else text
    found: list[str] = []
    for piece in (piece.strip() for piece in values.split("|")):
        match = _RANGE.fullmatch(piece)
        if not piece:
            raise NotationError(text, f"an empty value in {values!r}")
        found += [piece] if match is None else _range(text, match)
    return found


def bounds(text: str) -> tuple[float, float] | None:
    """The ends of LOW..HIGH, either of which may be left out; None for other texts.

    >>> bounds("3..5"), bounds("..0.5"), bounds("Easy|Medium")
    ((3.0, 5.0), (-inf, 0.5), None)

    Raises:
        NotationError: an end is no number, or they are the wrong way round.
    """
    low, dots, high = text.partition("..")
    if not dots:
        return None
    try:
        found = float(low or -math.inf), float(high or math.inf)
    except ValueError:
        raise NotationError(text, "its ends are no numbers") from None
    if not found[0] <= found[1]:
        raise NotationError(text, "it is empty: its ends are the wrong way round")
    return found


def weighted(text: str) -> tuple[str, float | None]:
    """The name and the weight of NAME or NAME=WEIGHT.

    >>> weighted("math=0.5"), weighted("gsm8k")
    (('math', 0.5), ('gsm8k', None))

    Raises:
        NotationError: the text cannot be read.
    """
    if "=" not in text:
        return text, None
    ((name, weight),) = pairs([text], text).items()
    try:
        return name, float(weight)
    except ValueError:
        raise NotationError(text, f"the weight {weight!r} is not a number") from None


def _range(text: str, match: re.Match[str]) -> list[str]:
    problem = NotationError(
        text,
        f"{match[0]!r} must be LOW..HIGH/STEP with HIGH above LOW, a positive STEP and at most "
        f"{_MAX_RANGE} values",
    )
    # Decimal, so that 0.1 + 0.1 + 0.1 is written 0.3.
    try:
        low, high, step = (decimal.Decimal(match[name]) for name in ("low", "high", "step"))
    except decimal.InvalidOperation:
        raise problem from None
    if step <= 0 or high < low or (high - low) / step > _MAX_RANGE:
        raise problem
    return [str(low + k * step) for k in range(int((high - low) / step) + 1)]


def convert(text: str, kind: Any) -> Any:
    """The value that a text stands for where a type is declared.

    >>> convert("true", bool), convert("1e-3", float), convert("none", int | None)
    (True, 0.001, None)

    With another type than bool, int, float, str, a Literal, or a union of these with each other or
    None, the text is read as a Python literal, or taken as it is.

    Raises:
        ValueError: it does not fit; the message is the end of a sentence about it.
    """
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"is not a {'whole ' if kind is int else ''}number") from None
    if kind is str:
        return text
    if typing.get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in typing.get_args(kind)}
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}{suggestion(text, choices)}")
        return choices[text]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _convert_union(text, typing.get_args(kind))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert_union(text: str, kinds: tuple[Any, ...]) -> Any:
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    errors = []
    for kind in sorted((kind for kind in kinds if is_plain(kind)), key=lambda kind: kind is str):
        try:
            return convert(text, kind)
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[-1]
    return convert(text, Any)


def is_plain(kind: Any) -> bool:
    """Whether a type is bool, int, float, str, a Literal, or a union of some of these and None."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return all(k is type(None) or is_plain(k) for k in typing.get_args(kind))
    return kind in _PLAIN or typing.get_origin(kind) is Literal


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class by name; `annotation` holds types, not their texts."""
    hints = _hints(function)
    if isinstance(function, type) and not dataclasses.is_dataclass(function):
        hints = _hints(vars(function).get("__init__", function.__init__))  # type: ignore[misc]
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _hints(of: Any) -> dict[str, Any]:
    """Annotations of a function, or of a class and its bases, as types."""
    hints: dict[str, Any] = {}
    for each in reversed(getattr(of, "__mro__", (of,))):
        if not hasattr(each, "__module__"):  # `object.__init__` of a class without its own.
            continue
        scope = vars(sys.modules[each.__module__])
        for name, hint in inspect.get_annotations(each).items():
            try:
                hints[name] = eval(hint, scope) if isinstance(hint, str) else hint
            except NameError:  # Imported for type checkers only.
                hints[name] = Any
    return hints


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: names that are close, or all that are known."""
    known = list(known)
    if close := nearest(name, known, 3, 0.5):
        return f"; did you mean {' or '.join(close)}"
    return f"; known: {', '.join(known) or 'none'}"


def nearest(name: str, known: Iterable[str], most: int = 1, alike: float = 0.6) -> list[str]:
    """The known names that are most like one, the nearest first; `alike` is between 0 and 1."""
    return difflib.get_close_matches(name, list(known), n=most, cutoff=alike)


def key_remedy(key: str, known: Sequence[str]) -> str:
    """A remedy for a dotted key that there is not: the nearest keys, or those of its group."""
    # Keys and their groups, each by the group that it is in and its name there.
    every = {other[: dot.start()] for other in known for dot in re.finditer(r"\.|$", other)}
    split = {other: other.rpartition(".")[::2] for other in sorted(every)}
    group, name = key.rpartition(".")[::2]
    beside = {own: other for other, (around, own) in split.items() if around == group}
    close = [beside[own] for own in nearest(name, beside)]
    close += [other for other, (_, own) in split.items() if own == name]
    close = close or nearest(key, split, alike=0.7)
    if close:
        return f"Did you mean {' or '.join(dict.fromkeys(close))}?"
    where, names = (f"in {group}", beside) if beside and group else ("here", {})
    roots = sorted({other.partition(".")[0] for other in known})
    return f"Known {where} are: {', '.join(names or roots)}"


class Names:
    """A table of names for one kind of thing: short names, or import paths.

    Args:
        kind: the kind, as errors call it: "policy", "task".
        aliases: short names of what the package has, with their import paths.
        package: beginning of these paths.
    """

    def __init__(self, kind: str, aliases: Mapping[str, str], package: str = "") -> None:
        prefix = f"{package}." if package else ""
        self.kind = kind
        self._aliases = {name: prefix + path for name, path in aliases.items()}

    def __iter__(self) -> Iterator[str]:
        """The short names."""
        return iter(self._aliases)

    def __contains__(self, name: object) -> bool:
        return name in self._aliases

    def __call__(self, name: str) -> Any:
        """The object of a short name or an import path, `package.module.Name`.

        Raises:
            NotationError: there is no such name, or its module cannot be imported.
        """
        path = self._aliases.get(name, name)
        module_name, dot, attribute = path.rpartition(".")
        if not dot or not module_name:
            raise NotationError(
                name,
                f"no {self.kind} has that name, and it is no import path (package.module.Name)"
                f"{suggestion(name, self)}",
            )
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            if name in self._aliases:
                raise
            what = f"{type(error).__name__}: {error}"
            raise NotationError(
                name,
                f"importing {module_name} for this {self.kind} failed ({what}); modules are looked "
                "for in the current directory, PYTHONPATH and the installed packages",
            ) from error
        if not hasattr(module, attribute):
            known = [each for each in vars(module) if not each.startswith("_")]
            problem = f"{module_name} has no {attribute}{suggestion(attribute, known)}"
            raise NotationError(name, problem)
        return getattr(module, attribute)

    def name_of(self, thing: Any) -> str:
        """The short name of a class or function, or its import path."""
        path = f"{thing.__module__}.{thing.__qualname__}"
        return next((name for name, each in self._aliases.items() if each == path), path)
