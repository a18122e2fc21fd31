"""The models, policies and experiment files that ship with the package.

Each model is a directory under `assets/` in its family's own format. Its `generation_config.json`
has the lengths that it was trained for. Each policy is a directory under `assets/policies/`.
Nothing else lists them: a directory that is added there is known to all commands.
"""

import importlib.resources
import json
import pathlib
from typing import NamedTuple


class Lengths(NamedTuple):
    """Lengths that a shipped model was trained for, in tokens.

    Attributes:
        prompt_length: budget of prompts.
        gen_length: canvas length L.
        block_length: block length of semi-autoregressive generation.
    """

    prompt_length: int
    gen_length: int
    block_length: int


def assets() -> pathlib.Path:
    """Directory of the files that ship with the package."""
    return pathlib.Path(str(importlib.resources.files("jax_unmask"))) / "assets"


def experiment(name: str) -> pathlib.Path | None:
    """The experiment file of a name, such as "gsm8k" or "configs/gsm8k.py", if one ships."""
    package = assets().parent
    # In a checkout they stand beside the package.
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    stem = pathlib.PurePath(name.removeprefix("configs/").removesuffix(".py"))
    file = folder / f"{stem}.py"
    return file if len(stem.parts) == 1 and file.is_file() else None


def shipped_models() -> list[str]:
    """Names of the denoisers that ship with the package; each is that of its task."""
    return sorted(path.parent.name for path in assets().glob("*/config.json"))


def shipped_policies() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(path.parent.name for path in assets().glob("policies/*/policy_config.json"))


def is_shipped_policy(directory: pathlib.Path) -> bool:
    """Whether a policy's directory is one of those that ship with the package."""
    return directory.resolve().parent == (assets() / "policies").resolve()


def resolve_model(path: str) -> str:
    """The directory of a shipped model, or `path` itself (write "./sudoku" for a directory)."""
    return str(assets() / path) if path in shipped_models() else path


def shipped_name(path: str) -> str | None:
    """The name of a shipped model, given by that or by its directory; None for other models."""
    directory = pathlib.Path(resolve_model(path)).expanduser().resolve()
    names = {(assets() / name).resolve(): name for name in shipped_models()}
    return names.get(directory)


def shipped_lengths(name: str) -> Lengths:
    """Lengths of a shipped model.

    Raises:
        ValueError: `name` is not that of one.
    """
    if name not in shipped_models():
        raise ValueError(f"{name!r} is no shipped model; there are {', '.join(shipped_models())}")
    fields = json.loads((assets() / name / "generation_config.json").read_text(encoding="utf-8"))
    return Lengths(**fields)
