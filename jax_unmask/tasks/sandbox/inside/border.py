"""The program's rights on objects of the tests: a list of what is allowed, by kind of object.

Nothing that could lead to the tests' frames, modules or builtins is on it: a generator can be
stepped but has no attributes, a function can be called, and modules, library functions and classes
cross as names that the other side imports for itself.
"""

import collections.abc
import enum
import functools
import io
import operator
import sys
import types
from typing import Any

TESTS = "tests"
"""Name of the module that tests are run in."""

_CALLABLES = (
    functools.partial,
    operator.itemgetter,
    operator.attrgetter,
    operator.methodcaller,
    type(functools.lru_cache(len)),
)
_DATA = (list, dict, set, frozenset, tuple, str, bytes, bytearray, collections.deque)
_FILES = (io.StringIO, io.BytesIO)
_OF_FILES = frozenset(
    (
        *("read", "readline", "readlines", "write", "writelines", "getvalue", "seek", "tell"),
        *("close", "__iter__", "__next__", "__enter__", "__exit__"),
    )
)
_STEPS = frozenset(("__iter__", "__next__", "__len__", "__reversed__"))
_ITERABLES = (collections.abc.Iterator, collections.abc.MappingView)
_PROVIDERS = (TESTS, "collections.abc")
_ALWAYS = frozenset(("__eq__", "__repr__", "__str__", "__bool__"))


def imported_name(value: Any) -> tuple[str, str] | None:
    """Module and name under which the standard library has a value; the name of a module is ""."""
    if isinstance(value, types.ModuleType):
        module, path = value.__name__, ""
    elif isinstance(value, types.MethodDescriptorType):
        module, path = value.__objclass__.__module__, value.__qualname__
    elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        module, path = value.__module__, value.__qualname__
    else:
        return None
    if str(module).partition(".")[0] not in sys.stdlib_module_names:
        return None
    found: Any = sys.modules.get(module)
    for part in filter(None, path.split(".")):
        found = getattr(found, part, None)
    return (module, path) if found is value else None


def may_cross(value: Any) -> bool:
    """Whether the program may hold a reference to an object."""
    kind = type(value)
    return (
        may_call(value)
        or kind in _FILES
        or _is_of_tests(value if isinstance(value, type) else kind)
        or (isinstance(value, _ITERABLES) and kind.__module__ in _LIBRARY)
    )


_LIBRARY = ("builtins", "itertools", "collections", "collections.abc", "_collections")


def may_call(value: Any) -> bool:
    """Whether the program may call an object."""
    if isinstance(value, type):
        return _is_of_tests(value)
    kind = type(value)
    if kind is types.FunctionType:
        return bool(value.__module__ == TESTS)
    if kind is types.MethodType:
        return may_call(value.__func__)
    if kind is types.BuiltinMethodType:
        return type(value.__self__) in (*_DATA, *_FILES)
    return kind in _CALLABLES or (_is_of_tests(kind) and _provider(kind, "__call__") is not None)


def may_get(value: Any, name: str) -> bool:
    """Whether the program may read an attribute."""
    kind = type(value)
    if name.startswith("_"):
        return False
    if kind in _FILES:
        return name in _OF_FILES
    if isinstance(value, type):
        return _is_of_tests(value) and _provider(value, name) is not None
    if not _is_of_tests(kind):
        return False
    if isinstance(value, enum.Enum) and name in ("name", "value"):
        return True
    return name in getattr(value, "__dict__", ()) or _provider(kind, name) is not None


def may_set(value: Any, name: str) -> bool:
    """Whether the program may set an attribute: data of an instance, no method."""
    kind = type(value)
    if name.startswith("_") or isinstance(value, type) or not _is_of_tests(kind):
        return False
    there = _provider(kind, name)
    methods = (types.FunctionType, classmethod, staticmethod)
    return there is None or not isinstance(vars(there)[name], methods)


def may_special(value: Any, name: str) -> bool:
    """Whether the program may use a special method."""
    kind = type(value)
    if name in _ALWAYS:
        return True
    if kind in _FILES:
        return name in _OF_FILES
    if _is_of_tests(kind):
        return any(_provider(kind, each) for each in (name, *_INSTEAD.get(name, ())))
    return name in _STEPS and isinstance(value, _ITERABLES)


_INSTEAD = {"__iter__": ("__getitem__",), "__reversed__": ("__getitem__",)}


def may_be_asked(kind: Any) -> bool:
    """Whether the program may ask what is an instance of a class."""
    return isinstance(kind, type) and _is_of_tests(kind)


def _is_of_tests(kind: type) -> bool:
    return kind.__module__ == TESTS


def _provider(kind: type, name: str) -> type | None:
    """The class that gives instances an attribute, if it is one of the tests'."""
    for each in kind.__mro__:
        if name in vars(each):
            return each if each.__module__ in _PROVIDERS else None
    return None
