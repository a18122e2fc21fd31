"""Recipe "curriculum": several trainings in a row, each from the result of the one before it.

A stage is an experiment file and what it changes:

    stages = (
        "configs/tracerl.py:block train.steps=60 rollout.block_length=4 learner.block_length=8",
        "configs/tracerl.py:block train.steps=40 rollout.block_length=8",
    )

So a curriculum can change everything in a config: the recipe (supervised training, then
reinforcement), tasks and their mixture, difficulty, lengths, learning rates. Each stage has a
directory of its own, which is a run like any other.
"""

import contextlib
import dataclasses
import logging
import pathlib
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jax_unmask import recipes
from jax_unmask.denoisers import families, hub
from jax_unmask.environment.bundle import check_weights
from jax_unmask.policies.learned import Network
from jax_unmask.recipes.experiments import changed_config
from jax_unmask.recipes.policy_start import check_start
from jax_unmask.runtime.config import check_workdir, claim_workdir, flatten
from jax_unmask.runtime.exports import EXPORTS, Trained, places
from jax_unmask.runtime.files import atomic_write
from jax_unmask.runtime.locks import DirectoryLock
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import ConfigError, SettingError, Settings, exempt_keys, flat, setting

_MARKER = "finished"
_FORM = "Write it as FILE.py or FILE.py:ARGUMENT, then KEY=VALUE ..."
_CHANGE = "Change it in that line, or in its file"
# Checks a config, with a denoiser of the same shape where its own is not there yet.
Check = Callable[[ConfigDict, str | None], Any]

logger = logging.getLogger(__name__)


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


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of a curriculum: its directory within that of the curriculum, and its config."""

    name: str
    config: ConfigDict


def stages(config: ConfigDict, workdir: pathlib.Path) -> list[Stage]:
    """Reads all stages; a `ConfigError` names a bad one.

    A stage starts from the exports of the nearest stages before it that trained the same things (a
    denoiser, a policy), and unmasking policies are trained for the nearest denoiser; unless the
    stage sets these keys itself.
    """
    recipes.parse(config)
    if not config.stages:
        raise ConfigError("stages", config.stages, "there is nothing to do", "Name at least one")
    made: dict[str, str] = {}
    found: list[Stage] = []
    for number, line in enumerate(config.stages):
        with _naming(config, number, _FORM):
            stage, changed = _read(line)
            recipes.parse(stage)
            name = f"{number + 1:02d}-{stage.recipe.rpartition('.')[2]}"
            trains = recipes.find(stage.recipe).trains
            for key in {*(EXPORTS[each].key for each in trains), "model.path"}:
                if key in made and key not in changed:
                    stage.update_from_flattened_dict({key: made[key]})
        exported = places(trains, workdir / name, stage.get("export"))
        made |= {EXPORTS[each].key: str(place) for each, place in exported.items()}
        found.append(Stage(name, stage))
    return found


def check_stages(
    config: ConfigDict, todo: Sequence[Stage], workdir: pathlib.Path, check: Check
) -> None:
    """Raises a `ConfigError` that names the first stage which could not begin.

    All is read that a stage needs: configs, data, tokenizers, shapes, policies; of weights only
    what their files say of names and shapes, and nothing of what earlier stages are going to write.
    Stages that are finished need nothing. No directory of a stage may hold another run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        future = _Future(pathlib.Path(scratch))
        for number, stage in enumerate(todo):
            place = workdir / stage.name
            if not (place / _MARKER).exists():
                with _naming(config, number, _CHANGE, future.named):
                    exempt = exempt_keys(recipes.parse(stage.config))
                    check_workdir(place, stage.config, exempt=exempt)
                    future.check(stage.config, place, check)


@contextlib.contextmanager
def _naming(
    config: ConfigDict, number: int, remedy: str, named: Callable[[str], str] = str
) -> Iterator[None]:
    """Names a stage in mistakes of its config; `named` mends their texts."""
    try:
        yield
    except (ValueError, KeyError, OSError, TypeError, ImportError) as error:
        remedy = _CHANGE if isinstance(error, SettingError) else remedy
        problem = named(str(error)).rstrip(".")
        raise ConfigError(f"stages[{number}]", config.stages[number], problem, remedy) from error


class _Future:
    """Results that earlier stages are going to write, with stand-ins to check later ones with.

    Args:
        scratch: a directory for the shapes and tokenizers of denoisers that start from scratch.
    """

    def __init__(self, scratch: pathlib.Path) -> None:
        self._scratch = scratch
        # A denoiser of the same shape for each that will be there; None where it is not known.
        self._models: dict[str, str | None] = {}
        self._policies: list[str] = []
        self._networks: dict[str | None, Network] = {}  # Of policies whose networks are known.

    def check(self, stage: ConfigDict, place: pathlib.Path, check: Check) -> None:
        """Checks a stage that will train in `place`, and takes note of what it will write."""
        recipe, model, bundle = recipes.find(stage.recipe), stage.model.path, None
        # 1. Its config, without the policies that earlier stages will write.
        config = _changed(stage, self._without_policies)
        model = self._stand_in(model) if model else None
        check(config, model)
        # 2. What it reads, with the shapes of the denoisers that they will write.
        if all(map(self._is_known, _texts(config))):
            like = recipes.read(_changed(config, self._stand_in), trains=True)
            own = self._scratch / place.name
            bundle = recipe.check(like, own)
            absent = [each for each in self._models.values() if each and self._is_stand_in(each)]
            check_weights(like, absent=absent)
            if bundle is not None and model is None:
                bundle.tokenizer.save(hub.begin_saving(own))
                hub.finish_saving(own, families.to_hf(bundle.denoiser.config))
                model = str(own)
        exported = places(recipe.trains, place, stage.get("export"))
        if "denoiser" in exported:
            self._models[str(exported["denoiser"])] = model
        if "policy" in exported:
            names = [str(place), str(exported["policy"])]
            self._policies += names
            if bundle is not None and recipe.build_policy is not None:
                network = recipe.build_policy(like, bundle.denoiser.config).network
                if before := self._networks.get(stage.policy.init_from):
                    check_start(stage.policy.init_from, network, before)
                self._networks |= dict.fromkeys(names, network)

    def named(self, text: str) -> str:
        """A message with the names of denoisers that will be there, not of their stand-ins."""
        for path, model in self._models.items():
            if model is not None and self._is_stand_in(model):
                text = text.replace(model, path)
        return text

    def _is_policy(self, text: str) -> bool:
        return any(_finds(path, text) for path in self._policies)

    def _without_policies(self, text: str) -> str | None:
        """A text without the policies that will be there; None where nothing is left of it."""
        if not self._is_policy(text):
            return text
        # Of an environment, a line KEY=VALUE ..., the other settings stay.
        words = shlex.split(text)
        return shlex.join(word for word in words if not self._is_policy(word)) or None

    def _is_known(self, text: str) -> bool:
        return not any(_finds(path, text) for path, model in self._models.items() if model is None)

    def _is_stand_in(self, model: str) -> bool:
        """Whether a directory holds a shape and a tokenizer alone."""
        return model.startswith(str(self._scratch))

    def _stand_in(self, text: str) -> str:
        for path, model in self._models.items():
            if model is not None and (found := _finds(path, text)):
                text = text[: found.start()] + model + text[found.end() :]
        return text


def _finds(path: str, text: str) -> re.Match[str] | None:
    """A path in a text, where it begins and ends there; also written as ./PATH or in full."""
    here = re.escape(f"{pathlib.Path.cwd()}/")
    return re.search(rf"(?<![\w./-])(?:\./|{here})?{re.escape(path)}/?(?![\w./-])", text)


def _texts(config: ConfigDict) -> Iterator[str]:
    """All texts of a config."""
    for value in flatten(config).values():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str):
                yield each


def _changed(config: ConfigDict, change: Callable[[str], str | None]) -> ConfigDict:
    """A config with changed texts: None leaves one out, or gives its key the recipe's default."""
    defaults, changes = flat(recipes.defaults(config.recipe)), {}
    for key, value in flatten(config).items():
        if isinstance(value, str):
            new = change(value)
            changes[key] = defaults.get(key) if new is None else new
        elif isinstance(value, tuple):
            texts = [change(each) if isinstance(each, str) else each for each in value]
            changes[key] = tuple(each for each in texts if each is not None)
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    train: Callable[[ConfigDict, pathlib.Path], bool],
    check: Check,
    lock: DirectoryLock,
) -> bool:
    """Trains stage after stage; stages that are finished already are left alone.

    Args:
        config: a config of a curriculum.
        workdir: receives a directory per stage.
        train: trains one config in one directory; False if a signal ended it before its end.
        check: checks the config of one training.
        lock: of the workdir; taken once all stages are read.

    Returns:
        Whether the last stage is finished.
    """
    todo = stages(config, workdir)
    check_stages(config, todo, workdir, check)
    check_workdir(workdir, config)
    lock.take()
    claim_workdir(workdir, config)
    for number, stage in enumerate(todo, start=1):
        marker = workdir / stage.name / _MARKER
        if marker.exists():
            logger.info("Stage %d of %d is finished: %s.", number, len(todo), stage.name)
            continue
        logger.info("Stage %d of %d: %s.", number, len(todo), stage.name)
        if not train(stage.config, workdir / stage.name):
            return False
        if not jax.process_index():
            atomic_write(marker, "")
        Placement().meet(stage.name)  # All see the same stages finished.
    return True


def _read(line: str) -> tuple[ConfigDict, set[str]]:
    """The config of a stage, and the keys that the stage itself sets."""
    words = shlex.split(line)
    if not words:
        raise ValueError("it is empty")
    config, changed = changed_config(words[0], words[1:])
    if recipes.is_curriculum(config):
        raise ValueError("a stage cannot be a curriculum itself")
    return config, changed
