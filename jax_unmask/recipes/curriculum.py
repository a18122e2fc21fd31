"""Recipe "curriculum": several trainings in a row; run by `jax_unmask.commands.curriculum`."""

from __future__ import annotations

import dataclasses

from jax_unmask.runtime.exports import Trained
from jax_unmask.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class CurriculumSettings(Settings):
    """The trainings of a curriculum."""

    recipe: str = setting("curriculum", "The name of this recipe.")
    stages: tuple[str, ...] = setting(
        (), "One line per training: FILE.py or FILE.py:ARGUMENT, then KEY=VALUE ..."
    )


class Curriculum:
    """Several trainings in a row, each from the result of the one before it."""

    defaults = CurriculumSettings()
    # Its stages have metrics and results, in directories of their own.
    shown: tuple[str, ...] = ()
    trains: tuple[Trained, ...] = ()
