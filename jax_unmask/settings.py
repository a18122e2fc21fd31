"""Settings: their name, type, default, range and meaning, declared once beside the code.

A component declares its settings as fields of a frozen dataclass:

    @dataclasses.dataclass(frozen=True)
    class Reward(Settings):
        kind: Literal["multiplicative", "additive"] = setting("multiplicative", "Form.")
        alpha: float = setting(1.0, "Exponent of the price of forwards.", ge=0)

and is built from them; a recipe's config is a dataclass of such groups. From the declaration come
the `ConfigDict` that users edit (`to_config`), the checked dataclass that is made of it
(`from_config`), errors, help and the reference page. Imports neither JAX nor ml_collections.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import math
import operator
import re
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from jax_unmask.notation import NotationError, key_remedy

_DECLARATION, _GIVEN = "setting", "given"
MAX_INT = 2**31 - 1
_MOST = 2**20  # What is counted without a bound of its own: rows, layers, positions.
_TINY = 2.0**-126  # Devices take smaller float32 for 0.
_NAME = r"`([\w.]+)`"


class SettingError(ValueError):
    """A setting has a value that it cannot have.

    Args:
        key: name of the setting.
        value: its value.
        problem: what is wrong with it. Names of other settings in backticks are completed, as the
            key is, where the error is about a config.
        remedy: what to do.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy
        given = filter(None, (problem, remedy))
        said = " ".join(re.sub(r"(?<![?.])\Z", ".", each) for each in given)
        text = re.sub(_NAME, lambda match: self._name(match[1]), said)
        super().__init__(f"{self._name(key)} = {value!r}: {text}")

    @staticmethod
    def _name(key: str) -> str:
        return key

    def within(self, group: str) -> "ConfigError":
        """An error with this text about the setting of a group of a config."""
        prefix = f"{group}." if group else ""
        return self.renamed(lambda key: prefix + key)

    def renamed(self, rename: Callable[[str], str]) -> "ConfigError":
        """An error with this text about other names: of its key, and of settings in backticks."""
        texts = (
            re.sub(_NAME, lambda match: f"`{rename(match[1])}`", text)
            for text in (self.problem, self.remedy)
        )
        return ConfigError(rename(self.key), self.value, *texts)


class FlagError(SettingError):
    """An argument of a command has a value that it cannot have."""

    @staticmethod
    def _name(key: str) -> str:
        return f"--{key}"


class ConfigError(SettingError):
    """A config cannot be run as it stands. The message names the full key, the value, a remedy."""

    @staticmethod
    def _name(key: str) -> str:
        return key if key.startswith("--") else f"config.{key}"


@contextlib.contextmanager
def naming(
    key: str, value: object, remedy: str = "", kind: type[SettingError] = SettingError
) -> Iterator[None]:
    """Names the key and its value in mistakes that name no setting.

    Args:
        key: name of the setting, or of the argument.
        value: its value.
        remedy: what to do, where the mistakes do not say it.
        kind: of the errors.
    """
    try:
        yield
    except SettingError:
        raise
    except (ValueError, OSError) as error:
        problem = error.problem if isinstance(error, NotationError) else str(error)
        raise kind(key, value, problem.rstrip("."), remedy) from error


@dataclasses.dataclass(frozen=True)
class Setting:
    """The declaration of a setting.

    Attributes:
        key: dotted name, such as "rollout.gen_length".
        default: default value, as a config holds it.
        help: one sentence: what it is, its unit, its source.
        kind: type of the value, or of the elements of a tuple.
        is_tuple: the value is a tuple of such elements, and the range that of each element.
        is_optional: the value may be None.
        ge, gt, le, lt: bounds of the value: at least, above, at most, below.
        choices: all allowed values; empty where bounds define them.
        is_exempt: may change when a run is resumed, since it does not touch what is trained.
        parse: makes the dataclass's value of a config's text; None where both are the same.
    """

    key: str
    default: Any
    help: str
    kind: type
    is_tuple: bool = False
    is_optional: bool = False
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] = ()
    is_exempt: bool = False
    parse: Callable[[str], Any] | None = None

    @property
    def type_name(self) -> str:
        """The type, as documentation writes it."""
        name = f"tuple of {self.kind.__name__}" if self.is_tuple else self.kind.__name__
        return f"{name} or None" if self.is_optional else name

    @property
    def range_text(self) -> str:
        """The range in words; empty if the type has no further limits."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        words = ("at least", "above", "at most", "below")
        bounds = zip(words, (self.ge, self.gt, self.le, self.lt), strict=True)
        return " and ".join(
            f"{word} {bound:g}" for word, bound in bounds if bound not in (None, MAX_INT)
        )

    def check(self, value: object) -> None:
        """Raises a `SettingError` unless the setting of a config can have this value."""
        if value is None:
            if not self.is_optional:
                self._refuse(value, f"it needs a value of type {self.type_name}")
        elif self.is_tuple:
            if not isinstance(value, (tuple, list)):
                self._refuse(value, f"a {self.type_name} is needed")
            for index, element in enumerate(typing.cast(Sequence[Any], value)):
                dataclasses.replace(self, key=f"{self.key}[{index}]")._check_one(element)
        else:
            self._check_one(value)

    def _check_one(self, value: Any) -> None:
        accepted = (int, float) if self.kind is float else (self.kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            self._refuse(value, f"it is of type {type(value).__name__}, not {self.kind.__name__}")
        self.check_range(value)

    def check_range(self, value: Any) -> None:
        """Checks range and choices of one value.

        Its nearest float32 must be above and below what the value must be, too; "at least" and "at
        most" say nothing about it, since a bound itself may be rounded across.
        """
        if self.choices:
            if value not in self.choices:
                remedy = f"Choose {self.range_text}"
                raise SettingError(self.key, value, "there is no such choice", remedy)
        elif self.kind in (int, float):
            rounded = _float32(value) if self.kind is float else value
            if self.kind is float and not math.isfinite(rounded):
                self._refuse(value, "it must be a finite number (of 32 bits)")
            if self.kind is float and 0 < abs(value) < _TINY:
                self._refuse(value, "32 bits round it to 0")
            if self.kind is int and self.le is None and self.lt is None and value > _MOST:
                self._refuse(value, f"it must be at most {_MOST}")
            if self.kind is int and not -MAX_INT <= value <= max(MAX_INT, self.lt or 0):
                self._refuse(value, "it must be a number of 32 bits")
            if (
                (self.ge is not None and value < self.ge)
                or (self.gt is not None and min(value, rounded) <= self.gt)
                or (self.le is not None and value > self.le)
                or (self.lt is not None and max(value, rounded) >= self.lt)
            ):
                self._refuse(value, f"it must be {self.range_text}")

    def _refuse(self, value: object, problem: str) -> typing.NoReturn:
        remedy = "Correct it" if self.default is None else f"The default is {self.default!r}"
        if self.range_text and self.range_text not in problem:
            remedy = f"Give a value {self.range_text}"
        raise SettingError(self.key, value, problem, remedy)


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[Any] = (),
    exempt: bool = False,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field of a dataclass that is a setting; its name and type are those of the field.

    Types are bool, int, float, str, tuples of one of these (`tuple[int, ...]`), `Literal`s of them
    (whose values are the choices) and each of these or None. Floats must be finite as float32.

    Args:
        default: the default value; with `parse`, the default text.
        help, ge, gt, le, lt, choices, exempt: see `Setting`.
        parse: makes the field's value of the text that a config has; ValueErrors are reported. The
            text of a value is `str` of it, that of None is "none".
    """
    if parse is not None:
        default = parse(default)
    # Name and type are those of the field, see `_declaration`.
    declared_as = Setting(
        *("", default, help, object),
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        choices=tuple(choices),
        is_exempt=exempt,
        parse=parse,
    )
    return dataclasses.field(default=default, metadata={_DECLARATION: declared_as})


def setting_of(kind: Any, name: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A field that is a setting as another class declares it, its default too if none is given."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    default = field.default if default is dataclasses.MISSING else default
    declared_as = dataclasses.replace(field.metadata[_DECLARATION], default=default)
    return dataclasses.field(default=default, metadata={_DECLARATION: declared_as})


def given(default: Any = None) -> Any:
    """A field that code fills in (`dataclasses.replace`), and that no config has."""
    return dataclasses.field(default=default, metadata={_GIVEN: True})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of dataclasses with settings: a value out of its range is a `SettingError`.

    Subclasses check relations between their settings in `check`.
    """

    is_exempt: ClassVar[bool] = False
    """All settings may change when a run is resumed."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self.check()

    def check(self) -> None:
        """Checks relations between settings; see `require`."""

    def require(self, condition: bool, key: str, problem: str, remedy: str) -> None:
        """Raises a `SettingError` about a setting unless the condition holds."""
        if not condition:
            raise SettingError(key, operator.attrgetter(key)(self), problem, remedy)

    def require_divides(self, divisor: str, dividend: str) -> None:
        """One setting must divide another; both are positive."""
        small, large = operator.attrgetter(divisor, dividend)(self)
        below, above = large // small * small, (large // small + 1) * small
        fitting = " or ".join(str(number) for number in (below, above) if number)
        self.require(
            large % small == 0,
            divisor,
            f"it must divide `{dividend}` = {large}",
            f"Change one of them; with {small}, `{dividend}` could be {fitting}",
        )

    def require_at_most(self, smaller: str, larger: str) -> None:
        """One setting must not exceed another."""
        small, large = operator.attrgetter(smaller, larger)(self)
        problem = f"it must not exceed `{larger}` = {large!r}"
        self.require(small <= large, smaller, problem, "Change one of them")


def check_ranges(instance: Any) -> None:
    """Checks the settings of a frozen dataclass, one by one; makes tuples of sequences."""
    for declaration in _own(type(instance)):
        value = getattr(instance, declaration.key)
        if declaration.is_tuple and value is not None:
            object.__setattr__(instance, declaration.key, tuple(value))  # Hashable.
            for element in value:
                declaration.check_range(element)
        elif value is not None and declaration.parse is None:
            declaration.check_range(value)


def check_values(kind: type, values: Mapping[str, Any]) -> None:
    """Checks values from a file for the settings of a dataclass: types, ranges and choices."""
    for declaration in _own(kind):
        if declaration.key in values and declaration.parse is None:
            declaration.check(values[declaration.key])


@dataclasses.dataclass(frozen=True)
class Variant:
    """A group of settings that its key `kind` chooses: those of one of several dataclasses.

    Their fields are settings, or have a plain default. Fields without one are given by code.

    Attributes:
        names: finds the dataclass of a kind; its ValueErrors are reported.
        kind: the kind.
        values: settings that differ from their defaults, by name.
    """

    is_exempt: ClassVar[bool] = False

    names: Callable[[str], Any]
    kind: str
    values: tuple[tuple[str, Any], ...] = ()

    def settings(self) -> list[Setting]:
        """The kind and its settings, with this instance's values for defaults."""
        changed = dict(self.values)
        found = [Setting("kind", self.kind, "Kind, or the import path of one of your own.", str)]
        for field in dataclasses.fields(self.names(self.kind)):
            if _GIVEN in field.metadata or field.default is dataclasses.MISSING:
                continue
            if _DECLARATION in field.metadata:
                each = _declaration(self.names(self.kind), field)
            else:
                is_tuple = isinstance(field.default, tuple)
                sample = (*field.default, 0.0)[0] if is_tuple else field.default
                each = Setting(field.name, field.default, "", type(sample), is_tuple)
            value = changed.get(field.name, field.default)
            found.append(dataclasses.replace(each, default=_text(each, value)))
        return found

    def of_kind(self, kind: str) -> "Variant":
        """A variant of another kind, at its defaults; a `SettingError` if there is no such kind."""
        try:
            self.names(kind)
        except ValueError as error:
            raise SettingError("kind", kind, str(error).rstrip("."), "Correct it") from error
        return Variant(self.names, kind)

    def with_values(self, values: Mapping[str, Any]) -> "Variant":
        """A variant of this kind with other values, checked if nothing else is needed for that."""
        chosen = {name: value for name, value in values.items() if name != "kind"}
        fields = dataclasses.fields(self.names(self.kind))
        if all(f.name in chosen or f.default is not dataclasses.MISSING for f in fields):
            try:
                self.names(self.kind)(**chosen)
            except SettingError:
                raise
            except ValueError as error:
                text = str(error).rstrip(".")
                raise SettingError("kind", self.kind, text, "Correct it") from error
        return Variant(self.names, self.kind, tuple(chosen.items()))

    def build(self, **given: Any) -> Any:
        """The dataclass, with those of the given fields that it has."""
        make = self.names(self.kind)
        fields = {field.name for field in dataclasses.fields(make)}
        wanted = {name: value for name, value in given.items() if name in fields}
        return make(**dict(self.values), **wanted)


S = TypeVar("S", bound=Settings)
_GROUPS = (Settings, Variant)


def declared(instance: Any) -> list[Setting]:
    """Every setting under its full key, in order of declaration; defaults are the instance's."""
    found = []
    for name, value in _members(instance):
        if isinstance(value, _GROUPS):
            for each in declared(value):
                is_exempt = each.is_exempt or value.is_exempt
                key = f"{name}.{each.key}"
                found.append(dataclasses.replace(each, key=key, is_exempt=is_exempt))
        else:
            found.append(value)
    return found


def exempt_keys(instance: Settings) -> tuple[str, ...]:
    """Keys of the settings that a resumed run may have changed."""
    return tuple(each.key for each in declared(instance) if each.is_exempt)


def flat(instance: Settings) -> dict[str, Any]:
    """The values of all settings under their full keys, in the types of a config."""
    return {each.key: each.default for each in declared(instance)}


def values_of(instance: Settings, kind: type[Settings]) -> dict[str, Any]:
    """The values in an instance of the settings that `kind` declares, by name."""
    return {each.key: getattr(instance, each.key) for each in _own(kind)}


def to_config(instance: Any) -> Any:
    """The `ConfigDict` of the settings, for users to edit."""
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder

    config = ConfigDict()
    for name, value in _members(instance):
        if isinstance(value, _GROUPS):
            config[name] = to_config(value)
        elif value.default is None:
            config[name] = placeholder(tuple if value.is_tuple else value.kind)
        else:
            config[name] = value.default
    return config


def from_config(instance: S, config: Any) -> S:
    """The settings of a config that was made by `to_config`, and edited since.

    `instance` has the names and types; of its values only fields that are no settings are kept.

    Raises:
        ConfigError: a key that there is not, or is missing; a value of another type or out of its
            range; two values that do not go together. The message has the full key.
    """
    found: S = _from_config(instance, config, "", [each.key for each in declared(instance)])
    return found


def _from_config(instance: Any, config: Any, prefix: str, known: Sequence[str]) -> Any:
    group = prefix.rstrip(".")
    if isinstance(instance, Variant) and config.get("kind") != instance.kind:
        try:
            instance = instance.of_kind(str(config.get("kind")))
        except SettingError as error:
            raise error.within(group) from error
    members = dict(_members(instance))
    for name in config:
        if name not in members:
            hint = key_remedy(prefix + name, known)
            raise ConfigError(prefix + name, _plain(config[name]), "there is no such key", hint)
    values = {}
    for name, member in members.items():
        key = prefix + name
        is_group = isinstance(member, _GROUPS)
        if name not in config:
            default = "a group of keys" if is_group else repr(member.default)
            raise ConfigError(key, None, "the key is missing", f"Its default is {default}")
        value = config[name]
        if isinstance(value, collections.abc.Mapping) or hasattr(value, "to_dict"):
            if not is_group:
                raise ConfigError(key, _plain(value), "it is a single value", "Give one")
            values[name] = _from_config(member, value, f"{key}.", known)
        elif is_group:
            names = ", ".join(inner for inner, _ in _members(member))
            raise ConfigError(key, value, "it is a group of keys", f"Set one of {names}")
        else:
            values[name] = _value(dataclasses.replace(member, key=key), value)
    try:
        if isinstance(instance, Variant):
            return instance.with_values(values)
        return dataclasses.replace(instance, **values)
    except ConfigError:
        raise
    except SettingError as error:
        raise error.within(group) from error


def _value(declaration: Setting, value: Any) -> Any:
    """A value of a config as the dataclass has it."""
    try:
        declaration.check(value)
    except SettingError as error:
        raise error.within("") from error
    if declaration.parse is not None:
        with naming(declaration.key, value, kind=ConfigError):
            value = declaration.parse(value)
        return value
    if value is None:
        return None
    return tuple(map(declaration.kind, value)) if declaration.is_tuple else declaration.kind(value)


def reference(settings: Sequence[Setting]) -> str:
    """Declarations as a Markdown table: key, default, range, meaning."""
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for each in settings:
        values = f"{each.type_name}, {each.range_text}" if each.range_text else each.type_name
        key = f"`{each.key}`" + (" ↻" if each.is_exempt else "")
        cells = (key, f"`{each.default!r}`", values, each.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def help_text(instance: Settings) -> str:
    """The settings as lines of a command's help."""
    lines = []
    for each in declared(instance):
        values = f"; {each.range_text}" if each.range_text else ""
        lines.append(f"  --config.{each.key}: {each.help}")
        lines.append(f"    (default: {each.default!r}; {each.type_name}{values})")
    return "\n".join(lines) + "\n"


def _members(instance: Any) -> Iterator[tuple[str, Any]]:
    """Groups (`Settings` or `Variant`) and declarations (`Setting`) of an instance, by name."""
    if isinstance(instance, Variant):
        yield from ((each.key, each) for each in instance.settings())
        return
    own = {each.key: each for each in _own(type(instance))}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.name in own:
            declaration = own[field.name]
            yield field.name, dataclasses.replace(declaration, default=_text(declaration, value))
        elif isinstance(value, _GROUPS) and _GIVEN not in field.metadata:
            yield field.name, value


def _text(declaration: Setting, value: Any) -> Any:
    """A value in the type of a config."""
    if declaration.parse is not None:
        return "none" if value is None else str(value)
    if declaration.kind is float and value is not None:
        return tuple(map(float, value)) if declaration.is_tuple else float(value)
    return value


def _read_declarations(kind: Any) -> tuple[Setting, ...]:
    """The settings that a class declares, those of groups apart; keys are names."""
    fields = dataclasses.fields(kind)
    return tuple(_declaration(kind, field) for field in fields if _DECLARATION in field.metadata)


_own: Callable[[Any], tuple[Setting, ...]] = functools.cache(_read_declarations)


def _declaration(kind: type, field: dataclasses.Field[Any]) -> Setting:
    """The declaration of a field, with the type from its annotation."""
    declared_as: Setting = field.metadata[_DECLARATION]
    annotation: Any = field.type
    if isinstance(annotation, str):
        owner = next(c for c in kind.__mro__ if field.name in inspect.get_annotations(c))
        annotation = eval(annotation, vars(sys.modules[owner.__module__]))
    is_optional = is_tuple = False
    choices = declared_as.choices
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        arguments = [each for each in typing.get_args(annotation) if each is not type(None)]
        is_optional = len(arguments) < len(typing.get_args(annotation))
        annotation = arguments[0]
    if typing.get_origin(annotation) is tuple:
        is_tuple, annotation = True, typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        choices = choices or typing.get_args(annotation)
        annotation = type(choices[0])
    if declared_as.parse is not None:
        annotation, is_optional, is_tuple = str, False, False
    if annotation not in (bool, int, float, str):
        raise TypeError(f"{kind.__name__}.{field.name}: a setting cannot be of type {annotation!r}")
    return dataclasses.replace(
        declared_as,
        key=field.name,
        kind=annotation,
        is_tuple=is_tuple,
        is_optional=is_optional,
        choices=choices,
    )


def _float32(value: float) -> float:
    """The nearest float32; infinite where there is none."""
    try:
        rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf
    return rounded


def _plain(value: Any) -> Any:
    """A group of a config as a plain dict."""
    return value.to_dict() if hasattr(value, "to_dict") else value
