"""The kinds of results of trainings: their directories in a workdir, and what takes them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal

Trained = Literal["denoiser", "policy"]


@dataclasses.dataclass(frozen=True)
class Export:
    """One kind of result.

    Attributes:
        directory: its directory in the workdir of the training.
        key: of a config whose training goes on from it.
        option: of `generate`, in front of its path.
    """

    directory: str
    key: str
    option: str


EXPORTS: dict[Trained, Export] = {
    "policy": Export("policy", "policy.init_from", "--policy=learned:"),
    "denoiser": Export("model", "model.path", "--model="),
}


def places(
    trains: Sequence[Trained], workdir: pathlib.Path, export: str | None = None
) -> dict[Trained, pathlib.Path]:
    """The directory of each result of a training; `export` is that of a denoiser, if given."""
    found = {each: workdir / EXPORTS[each].directory for each in EXPORTS if each in trains}
    if export and "denoiser" in found:
        found["denoiser"] = pathlib.Path(export)
    return found
