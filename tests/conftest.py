"""Settings that must precede the first import of JAX, and the fixtures all tests share."""

import getpass
import importlib.metadata
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

import browser

# The same examples in every run where nobody is there to look at a new one.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what tests on a CPU do; a second run finds the programs of the first.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(tempfile.gettempdir()) / f"jax_unmask_tests_{getpass.getuser()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # Takes half of the time.
# Halves it again: one module for LLVM, and the older emitter of fusions, which newer JAX lacks.
FAST_COMPILER = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FAST_COMPILER = f"--xla_cpu_use_fusion_emitters=false {FAST_COMPILER}"
if FAST_COMPILER not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILER}".strip()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Cases of a test that `default_cases` does not name are thorough ones."""
    for item in items:
        mark = item.get_closest_marker("default_cases")
        if mark is not None and item.callspec.id not in mark.args:
            item.add_marker("thorough")


@pytest.fixture(scope="module", autouse=True)
def free_programs() -> Iterator[None]:
    """Drops the programs that a module's tests compiled.

    Each holds a few memory maps, of which Linux allows a process 65,530: the compiler aborts when
    they are used up, and all tests together need more.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    """A page of a headless browser."""
    with browser.page(browser.find(), str(tmp_path_factory.mktemp("profile"))) as tab:
        yield tab


@pytest.fixture(scope="session")
def fixtures_dir() -> pathlib.Path:
    """Golden records, laid out as the packages are."""
    return pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def shared_data_dir() -> pathlib.Path:
    """Real datasets and tokenizers, which are too large for the repository."""
    beside = pathlib.Path(__file__).parents[2] / "shared" / "data"
    directory = pathlib.Path(os.environ.get("JAX_UNMASK_DATA", beside))
    if not directory.is_dir():
        if "JAX_UNMASK_DATA" in os.environ:
            pytest.fail(f"JAX_UNMASK_DATA={directory} is not a directory")
        pytest.skip("give the directory that holds gsm8k/, math/, ... in JAX_UNMASK_DATA")
    return directory
