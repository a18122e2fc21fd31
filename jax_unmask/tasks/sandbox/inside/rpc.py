"""Remote calls between the process of the tests and that of the program under test.

Both sides have an `Endpoint`. Plain data is copied; all other objects stay in the process that made
them, and are called through a `Remote`. The program may do with the tests' objects what `border`
lists, and nothing else. Comparisons of a `Remote` with data are never left to the
other side: an answer that claims to equal everything, or computes its own difference from the right
one, is just not equal.
"""

import builtins
import dis
import functools
import importlib
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from . import border, wire

# Methods that Python looks up on the type. They may tell what an object is; see `_refuse_data` for
# those that would let the object learn the right answer.
_FREELY = (
    "__len__", "__getitem__", "__setitem__", "__delitem__", "__iter__", "__next__", "__reversed__",
    "__neg__", "__pos__", "__abs__", "__invert__", "__int__", "__float__", "__index__", "__bool__",
    "__round__", "__str__", "__enter__",
)  # fmt: skip
_AMONG_REMOTES = (
    "__lt__", "__le__", "__gt__", "__ge__", "__add__", "__sub__", "__mul__", "__truediv__",
    "__floordiv__", "__mod__", "__matmul__", "__and__", "__or__", "__xor__", "__divmod__",
)  # fmt: skip
_SLOTS = ("_endpoint", "_number")


class Remote:
    """An object that lives on the other side."""

    __slots__ = _SLOTS

    def __init__(self, endpoint: "Endpoint", number: int) -> None:
        object.__setattr__(self, "_endpoint", endpoint)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._endpoint.call(self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._endpoint.ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._endpoint.ask("set", self._number, name, self._endpoint.encode(value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False
        return self._number == other._number or bool(self._special("__eq__", other))

    def __hash__(self) -> int:
        return hash(self._number)

    def __contains__(self, item: object) -> bool:
        return any(each is item or each == item for each in self)

    def __iter__(self) -> Iterator[Any]:
        return self._special("__iter__")

    def __instancecheck__(self, instance: object) -> bool:
        if not isinstance(instance, Remote):
            return False
        return bool(self._endpoint.ask("isinstance", instance._number, self._number))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        told = [] if error is None else [_names(error), _text(error)]
        suppressed = bool(self._special("__exit__", *told))
        # Not what went wrong in between: the assertions behind it would never be made.
        return suppressed and (self._endpoint.trusts or _is_raised_by_tests(error, trace))

    def __repr__(self) -> str:
        return str(self._special("__repr__"))

    def _special(self, name: str, *args: Any) -> Any:
        form = [self._endpoint.encode(arg) for arg in args]
        return self._endpoint.ask("special", self._number, name, form)


def _freely(name: str) -> Callable[..., Any]:
    return lambda self, *args: self._special(name, *args)


def _among_remotes(name: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote):
            _refuse_data(name)
        return self._special(name, other)

    return method


def _refuse_data(name: str) -> NoReturn:
    raise TypeError(f"{name} between an object of the program's own and data is not supported")


for _name in _FREELY:
    if _name != "__iter__":
        setattr(Remote, _name, _freely(_name))
for _name in _AMONG_REMOTES:
    setattr(Remote, _name, _among_remotes(_name))


class Endpoint:
    """One side of a connection.

    Args:
        descriptor: a connected stream socket.
        trusts: whether the other side may do everything with the objects of this one, and nothing
            but what `border` lists without.
    """

    def __init__(self, descriptor: int, *, trusts: bool) -> None:
        self.trusts = trusts
        self.exceptions: dict[str, type[BaseException]] = {}
        # Output of this side since the last request for it.
        self.take_printed: Callable[[], str] = str
        self._descriptor = descriptor
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._extra: dict[str, Callable[..., Any]] = {}

    def serve(self, **extra: Callable[..., Any]) -> None:
        """Answers requests until the other side is gone.

        Args:
            **extra: requests beyond those for objects; they return JSON forms.
        """
        self._extra = extra
        try:
            while True:
                self._answer(wire.receive(self._descriptor))
        except wire.Broken:
            return

    def ask(self, request: str, *args: Any) -> Any:
        """The answer to a request; serves the other side's requests meanwhile."""
        form = self.ask_form(request, *args)
        return self.decode(form)

    def ask_form(self, request: str, *args: Any) -> Any:
        """The answer to a request, not yet decoded."""
        wire.send(self._descriptor, ["ask", request, *args])
        while True:
            message = wire.receive(self._descriptor)
            match message:
                case ["ask", *_]:
                    self._answer(message)
                case ["value", form]:
                    return form
                case ["error", list(names), str(text)]:
                    error = self._exception(names, text)
                    if isinstance(error, StopIteration) and "__next__" not in args:
                        # Would end a loop of the tests, and the assertions behind it.
                        error = RuntimeError(f"StopIteration: {text}")
                    raise error
                case _:
                    raise wire.Broken(f"not an answer: {str(message)[:80]}")

    def call(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls an object of the other side; lists, dicts and sets take the changes it makes."""
        forms = [self.encode(arg) for arg in args]
        named = {name: self.encode(value) for name, value in kwargs.items()}
        result, changed, printed = self.ask_form("call", number, forms, named)
        if printed:
            sys.stdout.write(str(printed))
        for position, form in changed:
            _replace_content(args[position], self.decode(form))
        return self.decode(result)

    def encode(self, value: Any) -> Any:
        """JSON form of a value; objects are remembered and get numbers."""
        return wire.encode(value, self._refer)

    def decode(self, form: Any) -> Any:
        """Value of a JSON form."""
        return wire.decode(form, self._resolve)

    def _refer(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["yours", value._number]
        if not self.trusts:
            if (name := border.imported_name(value)) is not None:
                return ["import", *name]
            if isinstance(value, BaseException):
                return ["exception", _names(value), _text(value)]
            if not border.may_cross(value):
                raise TypeError(f"a {type(value).__name__} of the tests cannot be given away")
        number = self._numbers.get(id(value))
        if number is None:
            number = len(self._objects)
            self._objects.append(value)  # Kept, so that no other object gets the same id.
            self._numbers[id(value)] = number
        return ["mine", number]

    def _resolve(self, reference: Any) -> Any:
        match reference:
            case ["mine", int(number)]:
                return Remote(self, number)
            case ["yours", int(number)] if 0 <= number < len(self._objects):
                return self._objects[number]
            case ["import", str(module), str(path)] if self.trusts:
                found: Any = importlib.import_module(module)
                return functools.reduce(getattr, filter(None, path.split(".")), found)
            case ["exception", list(names), str(text)] if self.trusts:
                return self._exception(names, text)
        raise wire.Broken(f"not a reference: {str(reference)[:80]}")

    def _object(self, number: Any) -> Any:
        return self._resolve(["yours", number])

    def _exception(self, names: list[Any], text: str) -> BaseException:
        for name in names:
            kind = self.exceptions.get(str(name)) or getattr(builtins, str(name), None)
            if isinstance(kind, type) and issubclass(kind, BaseException):
                try:
                    return kind(text)
                except TypeError:  # Some, like UnicodeDecodeError, need more arguments than a text.
                    continue
        return RuntimeError(text)

    def _answer(self, message: Any) -> None:
        try:
            answer = ["value", self._do(message)]
        except wire.Broken:
            raise
        except BaseException as error:  # The caller handles every exception of the code.
            answer = ["error", _names(error), _text(error)]
        wire.send(self._descriptor, answer)

    def _do(self, message: Any) -> Any:
        match message:
            case ["ask", "call", number, list(forms), dict(named)]:
                return self._do_call(number, forms, named)
            case ["ask", "get", number, str(name)]:
                target = self._object(number)
                self._require(border.may_get, target, name)
                return self.encode(getattr(target, name))
            case ["ask", "set", number, str(name), form]:
                target = self._object(number)
                self._require(border.may_set, target, name)
                setattr(target, name, self.decode(form))
                return None
            case ["ask", "special", number, str(name), list(forms)]:
                return self._do_special(number, name, forms)
            case ["ask", "isinstance", number, kind]:
                self._require(border.may_be_asked, self._object(kind))
                return isinstance(self._object(number), self._object(kind))
            case ["ask", str(name), *args] if name in self._extra:
                return self._extra[name](*args)
        raise wire.Broken(f"not a request: {str(message)[:80]}")

    def _do_call(self, number: Any, forms: list[Any], named: dict[str, Any]) -> list[Any]:
        args = [self.decode(form) for form in forms]
        kwargs = {name: self.decode(form) for name, form in named.items()}
        self._require(border.may_call, self._object(number))
        result = self.encode(self._object(number)(*args, **kwargs))
        changed = []
        for position, (arg, form) in enumerate(zip(args, forms, strict=True)):
            if isinstance(arg, list | dict | set | bytearray):
                after = self.encode(arg)
                if after != form:
                    changed.append([position, after])
        return [result, changed, self.take_printed()]

    def _do_special(self, number: Any, name: str, forms: list[Any]) -> Any:
        if name not in _PERMITTED_SPECIAL:
            raise wire.Broken(f"not a special method: {name[:80]}")
        target = self._object(number)
        self._require(border.may_special, target, name)
        args: list[Any] = [self.decode(form) for form in forms]
        if name == "__exit__":
            error = self._exception(*args) if args else None
            args = [None if error is None else type(error), error, None]
        special = _BUILTINS.get(name)
        result = special(target, *args) if special else getattr(target, name)(*args)
        return self.encode(result)

    def _require(self, right: Callable[..., bool], *args: Any) -> None:
        if not self.trusts and not right(*args):
            raise AttributeError(f"not for the program: {str(args[1:])[:80]}")


# For these the type need not have the method, or the builtin does more than call it.
_BUILTINS: dict[str, Callable[..., Any]] = {
    "__iter__": iter, "__next__": next, "__bool__": bool, "__str__": str, "__repr__": repr,
    "__round__": round, "__reversed__": reversed, "__len__": len, "__eq__": operator.eq,
}  # fmt: skip
_PERMITTED_SPECIAL = frozenset((*_FREELY, *_AMONG_REMOTES, "__eq__", "__repr__", "__exit__"))


def _is_raised_by_tests(error: BaseException | None, trace: types.TracebackType | None) -> bool:
    """Whether a statement `raise` of the tests raised an error."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error, AssertionError):
        return False
    code = trace.tb_frame.f_code
    is_raise = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and trace.tb_frame.f_globals.get("__name__") == border.TESTS


def _names(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _text(error: BaseException) -> str:
    try:
        # Of a KeyError the representation is shown, which would be made twice.
        shown = error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else error
        return str(shown)[:2000]
    except BaseException:  # The program's own __str__.
        return ""


@functools.singledispatch
def _replace_content(target: Any, content: Any) -> None:
    raise wire.Broken(f"a change of a {type(target).__name__}")


@_replace_content.register(list)
@_replace_content.register(bytearray)
def _(target: Any, content: Any) -> None:
    target[:] = content


@_replace_content.register(dict)
@_replace_content.register(set)
def _(target: Any, content: Any) -> None:
    target.clear()
    target.update(content)
