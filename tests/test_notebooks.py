"""The notebooks run, and show what there is."""

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from jax_unmask import recipes
from jax_unmask.settings import declared

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
KEYS = {each.key for name in recipes.RECIPES for each in declared(recipes.defaults(name))}
LONGEST_CELL = 15
LARGEST = 300_000  # Bytes, with outputs.
QUICK = ("tracerl",)

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (the extra `test`)")


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def sources(notebook: Any) -> list[str]:
    """Python of the code cells: without lines for IPython, and of files that a cell writes."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    plain = [re.sub(r"^%%.*\n", "", source) for source in cells]
    return [re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE) for source in plain]


@pytest.fixture(params=NOTEBOOKS)
def name(request) -> str:
    return request.param


def test_notebooks_are_short_and_tell_where_they_run(name):
    notebook = read(name)
    first, install, parameters = notebook.cells[:3]
    address = "colab.research.google.com/github/jax-unmask/jax_unmask/blob/main/docs/notebooks"
    assert f"{address}/{name}.ipynb" in first.source
    assert "%pip install" in install.source
    assert "small" in parameters.metadata
    lengths = {len(source.splitlines()) for source in sources(notebook)}
    assert max(lengths) <= LONGEST_CELL


def test_outputs_are_kept_small_and_without_this_machine(name):
    file = FOLDER / f"{name}.ipynb"
    assert file.stat().st_size < LARGEST
    outputs = [cell.outputs for cell in read(name).cells if cell.cell_type == "code"]
    shown = re.sub(r"[A-Za-z0-9+/=]{200,}", "", str(outputs))  # Pictures.
    assert not re.findall(r"(?<![\w.<])/(?:tmp|root|home|work|usr|opt|Users)\b[\w/.]*", shown)
    assert not [each for some in outputs for each in some if each.output_type == "error"]


def test_everything_that_is_called_exists(name):
    """Imports, arguments and settings."""
    known: dict[str, Any] = {}
    wrong = []
    for source in sources(read(name)):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jax_unmask"):
                for alias in node.names:
                    dotted = f"{node.module}.{alias.name}"
                    is_module = importlib.util.find_spec(node.module).submodule_search_locations
                    found = is_module and importlib.util.find_spec(dotted)
                    module = importlib.import_module(dotted if found else node.module)
                    known[alias.name] = module if found else getattr(module, alias.name)
            elif isinstance(node, ast.Call):
                wrong += misfits(node, known)
            wrong += [key for key in settings(node) if key not in KEYS]
    assert known
    assert not wrong


def misfits(call: ast.Call, known: dict[str, Any]) -> list[str]:
    """A call of something of the package whose arguments it does not take."""
    function = ast.unparse(call.func)
    parts = function.split(".")
    called = known.get(parts[0])
    for part in parts[1:]:
        called = getattr(called, part, None)
    is_named = re.fullmatch(r"[\w.]+", function) and parts[0] in known
    if not is_named or any(keyword.arg is None for keyword in call.keywords):
        return []
    try:
        inspect.signature(called).bind(*call.args, **{k.arg: None for k in call.keywords})
    except TypeError as error:
        return [f"{ast.unparse(call)}: {error}"]
    return []


def settings(node: ast.AST) -> list[str]:
    """Keys of a config that a statement sets."""
    if isinstance(node, ast.Assign):
        targets = [ast.unparse(target) for target in node.targets]
        return [target.removeprefix("config.") for target in targets if "config." in target]
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("config."):
        group, _, method = ast.unparse(node.func).removeprefix("config.").rpartition(".")
        if method == "update":
            return [f"{group}.{keyword.arg}" for keyword in node.keywords]
    return []


RUNS = [
    pytest.param(each, marks=[] if each in QUICK else pytest.mark.thorough) for each in NOTEBOOKS
]


@pytest.mark.parametrize("name", RUNS)
def test_notebooks_run(name, tmp_path):
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (the extra `test`)")
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    done = run.tidy(run.execute(read(name), tmp_path, small=True), tmp_path)
    outputs = [each for cell in done.cells for each in cell.get("outputs", ())]
    assert any("image/png" in each.get("data", {}) for each in outputs)
    assert (tmp_path / "runs").is_dir()
