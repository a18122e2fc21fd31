"""The package `my_package` of docs/extending.md, which lies outside of this repository."""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

import tiny
from jax_unmask import denoisers
from jax_unmask.commands import command_line

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "extending.md", DOCS / "extending_recipe.md")
FILE = re.compile(r"^<!-- (\S+) -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Directory with the files of the page, in which Python finds modules."""
    directory = tmp_path_factory.mktemp("outside")
    for name, code in FILE.findall("".join(page.read_text() for page in PAGES)):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(code)
    (directory / "my_package" / "__init__.py").touch()
    sys.path.insert(0, str(directory))
    yield directory
    sys.path.remove(str(directory))
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def llada(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A denoiser of bytes with random weights."""
    directory = tmp_path_factory.mktemp("llada")
    tiny.save_byte_model(directory)
    return directory


@pytest.fixture(scope="session")
def model(package, llada, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same in the format of `my_package.family`."""
    directory = tmp_path_factory.mktemp("mine")
    denoiser, params = denoisers.from_pretrained(llada)
    config = dataclasses.replace(denoiser.config, family="my_package.family.FAMILY")
    tokenizer = denoisers.load_tokenizer(llada)
    denoisers.save_pretrained(directory, denoisers.Denoiser(config), params, tokenizer)
    return directory


@pytest.fixture(autouse=True)
def keep_pytests_logging(monkeypatch):
    """Commands would send messages to a stream that pytest closes after the test."""
    monkeypatch.setattr(command_line, "set_up_logging", lambda: None)
