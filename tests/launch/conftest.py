import importlib.util
import itertools
import pathlib
import shutil
import subprocess
import sys
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fakes():
    """Programs that stand for those of a scheduler, see fakes.py."""
    spec = importlib.util.spec_from_file_location(
        "fakes", pathlib.Path(__file__).with_name("fakes.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The Python of a new virtual environment that holds a wheel of this repository."""
    directory = tmp_path_factory.mktemp("wheel")
    (directory / "source").mkdir()
    # The image has to copy all that a build needs.
    image = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in image if line.startswith("COPY ")]
    for name in itertools.chain(*copied):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, directory / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", f"--wheel-dir={directory}", str(directory / "source")]
    subprocess.run(build, check=True, timeout=300)
    (built,) = directory.glob("*.whl")
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv" / "bin" / "python"
    subprocess.run([*pip, f"--python={python}", "install", str(built)], check=True, timeout=900)
    return python
