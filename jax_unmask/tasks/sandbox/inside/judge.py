"""The process that runs the tests. Untrusted code never runs in it."""

import ast
import builtins
import importlib
import sys
import types
from collections.abc import Sequence
from typing import Any

from . import border, pytest_stand_in, wire
from .program import NAME
from .rpc import Endpoint

_MAX_ERROR = 500


def judge(descriptor: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Runs the tests against the program at the other end.

    Args:
        descriptor: socket to the program.
        spec: `setup`, source that the tests rely on; `tests`, sources that pass if they raise
            nothing; `exports`, names to take from the program, even if setup or Python define them
            (nothing else is taken then, but modules by their own names; without, whatever the tests
            use);
            `functions`, whether every function `test_*` that the tests define is a test, too.

    Returns:
        `passed` and `total`, numbers of tests, and `error`, the first failure.
    """
    # The process that this one was forked from may have seen the end of another job's.
    wire.Broken.ever = False
    endpoint = Endpoint(descriptor, trusts=False)
    tests, exports = spec["tests"], spec["exports"]
    verdict: dict[str, Any] = {"passed": 0, "total": len(tests), "error": ""}
    try:
        endpoint.ask("load")
        variables = _variables(endpoint, [spec["setup"], *tests], exports)
        taken = {name: variables[name] for name in exports if name in variables}
        exec(compile(spec["setup"], "<setup>", "exec", dont_inherit=True), variables)
        variables.update(taken)
    except BaseException as error:
        verdict["error"] = _text(error)
        return verdict
    for test in tests:
        _run(lambda source=test: exec(_compile(source), variables), verdict)
    if spec["functions"]:
        # Tests that only define functions are no tests themselves.
        failed = verdict["total"] - verdict["passed"]
        cases = list(pytest_stand_in.collect(variables))
        verdict["passed"], verdict["total"] = 0, len(cases) + failed
        for case in cases:
            _run(case, verdict)
    return verdict


def _compile(source: str) -> types.CodeType:
    return compile(source, "<tests>", "exec", dont_inherit=True)


def _run(test: Any, verdict: dict[str, Any]) -> None:
    try:
        test()
        if wire.Broken.ever:  # The test took the program's end for an exception of its own.
            raise wire.Broken("the program's process ended")
        verdict["passed"] += 1
    except BaseException as error:  # SystemExit fails a test like everything else.
        verdict["error"] = verdict["error"] or _text(error)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR]


def _variables(
    endpoint: Endpoint, sources: Sequence[str], exports: Sequence[str]
) -> dict[str, Any]:
    """The variables that tests start from: what they use and the program defines."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    free = {name for name in used if not hasattr(builtins, name) and not name.startswith("__")}
    modules = {name for name in free - set(exports) if _is_module(name, nodes)}
    wanted = modules | set(exports or free)
    found = _take(endpoint, sorted(wanted))
    # A test that says `math.isclose` means Python's, whatever the program calls `math`.
    found |= {name: importlib.import_module(name) for name in modules & found.keys()}
    sys.modules[NAME] = _Solution(endpoint)
    sys.modules["pytest"] = pytest_stand_in.module()
    return {"__name__": border.TESTS, "__builtins__": builtins, **found}


def _is_module(name: str, nodes: Sequence[ast.AST]) -> bool:
    """Whether a name stands for nothing but a module of the standard library, in `name.member`."""
    if name not in sys.stdlib_module_names:
        return False
    bases = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
    members = [bases.get(id(n)) for n in nodes if isinstance(n, ast.Name) and n.id == name]
    module = importlib.import_module(name) if all(members) else None
    return module is not None and all(hasattr(module, str(member)) for member in members)


class _Solution(types.ModuleType):
    """The module that `from solution import name` imports."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(NAME)
        self._endpoint = endpoint

    def __getattr__(self, name: str) -> Any:
        found = {} if name.startswith("__") else _take(self._endpoint, [name])
        if name not in found:
            raise AttributeError(f"the program defines no {name!r}")
        return found[name]


def _take(endpoint: Endpoint, names: list[str]) -> dict[str, Any]:
    """The objects that the program has under some names; others in its answer are left out."""
    answer = endpoint.ask_form("names", names)
    if not isinstance(answer, dict):
        raise wire.Broken("not an answer to 'names'")
    found: dict[str, Any] = {}
    for name in names:
        if name not in answer:
            continue
        form = answer[name]
        match form:
            case ["module", str(module)]:
                # The real one: the program may have changed its own.
                if module.partition(".")[0] in sys.stdlib_module_names:
                    found[name] = importlib.import_module(module)
            case ["exception", str(kind), list(bases)]:
                found[name] = _exception(endpoint, kind, bases)
            case ["value", value]:
                found[name] = endpoint.decode(value)
            case _:
                raise wire.Broken(f"not a description: {str(form)[:80]}")
    return found


def _exception(endpoint: Endpoint, name: str, bases: list[Any]) -> type[BaseException]:
    """A local class in place of the program's exception, or Python's built-in one."""
    builtin = [getattr(builtins, str(base), None) for base in bases]
    known = [kind for kind in builtin if isinstance(kind, type)]
    base = next((kind for kind in known if issubclass(kind, BaseException)), Exception)
    if base in (BaseException, Exception, AssertionError):
        # A class of its own: `except` of it must not catch a failed assertion of the tests.
        base = Exception
    elif base.__name__ == name:
        return base
    if name not in endpoint.exceptions:
        endpoint.exceptions[name] = type(name, (base,), {})
    return endpoint.exceptions[name]
