"""Several trainings in a row, each from the result of the one before it.

A stage is an experiment file and what it changes:

    stages = (
        "configs/tracerl.py:block train.steps=60 rollout.block_length=4 learner.block_length=8",
        "configs/tracerl.py:block train.steps=40 rollout.block_length=8",
    )

So a curriculum can change everything in a config: the recipe (supervised training, then
reinforcement), tasks and their mixture, difficulty, lengths, learning rates. Each stage has a
directory of its own, which is a run like any other.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jax_unmask import recipes
from jax_unmask.commands.checks import check_training
from jax_unmask.commands.command_line import changed_config
from jax_unmask.environment.bundle import load_task
from jax_unmask.recipes.policy_grpo import ONLY_AT_INIT
from jax_unmask.runtime.config import check_workdir, claim_workdir, flatten
from jax_unmask.runtime.exports import EXPORTS, places
from jax_unmask.runtime.files import atomic_write
from jax_unmask.runtime.locks import DirectoryLock
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import ConfigError

_MARKER = "finished"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of a curriculum: its directory within that of the curriculum, and its config."""

    name: str
    config: ConfigDict


def stages(config: ConfigDict, workdir: pathlib.Path) -> list[Stage]:
    """Reads and checks all stages, before the first one starts; a `ConfigError` names a bad one.

    A stage starts from the exports of the nearest stages before it that trained the same things (a
    denoiser, a policy), and unmasking policies are trained for the nearest denoiser; unless the
    stage sets these keys itself.
    """
    recipes.parse(config)
    if not config.stages:
        raise ConfigError("stages", config.stages, "there is nothing to do", "Name at least one")
    made: dict[str, str] = {}
    network: dict[str, Any] = {}  # Of the policy that is made.
    found: list[Stage] = []
    for number, line in enumerate(config.stages, start=1):
        try:
            stage, changed = _read(line)
            name = f"{number:02d}-{stage.recipe.rpartition('.')[2]}"
            trains = recipes.find(stage.recipe).trains
            for key in {*(EXPORTS[each].key for each in trains), "model.path"}:
                if key in made and key not in changed:
                    stage.update_from_flattened_dict({key: made[key]})
            settings, _ = check_training(
                _without_results(stage, [workdir / each.name for each in found])
            )
            for each in settings.each:
                load_task(each)
            if "policy" in trains:
                before, network = network, _network(stage)
                if stage.policy.init_from == made.get("policy.init_from"):
                    _require_same(network, before)
        except (ConfigError, ValueError, KeyError, OSError, TypeError) as error:
            remedy = "Write it as FILE.py or FILE.py:ARGUMENT, then KEY=VALUE ..."
            problem = str(error).rstrip(".")
            raise ConfigError(f"stages[{number - 1}]", line, problem, remedy) from error
        for each, place in places(trains, workdir / name, stage.get("export")).items():
            made[EXPORTS[each].key] = str(place)
        found.append(Stage(name, stage))
    return found


def _without_results(stage: ConfigDict, earlier: Sequence[pathlib.Path]) -> ConfigDict:
    """The config of a stage without the policies to evaluate that earlier stages will write."""
    there = stage.copy_and_resolve_references()
    there.eval.policies = tuple(
        text for text in stage.eval.policies if not any(f"{each}/" in text for each in earlier)
    )
    return there


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    train: Callable[[ConfigDict, pathlib.Path], bool],
    lock: DirectoryLock,
) -> bool:
    """Trains stage after stage; stages that are finished already are left alone.

    Args:
        config: a config of a curriculum.
        workdir: receives a directory per stage.
        train: trains one config in one directory; False if a signal ended it before its end.
        lock: of the workdir; taken once all stages are read.

    Returns:
        Whether the last stage is finished.
    """
    todo = stages(config, workdir)
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


def _network(config: ConfigDict) -> dict[str, Any]:
    """The settings that the network of a policy must share with that which it goes on from."""
    return {
        key: value
        for key, value in flatten(config).items()
        if key.startswith("policy.network.") and key.rpartition(".")[2] not in ONLY_AT_INIT
    }


def _require_same(network: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for key in sorted(network.keys() | before.keys()) if before else ():
        if network.get(key) != before.get(key):
            problem = f"the stage whose policy this one goes on from has {before.get(key)!r}"
            remedy = "Give both the same, or `policy.init_from` = None for a new policy"
            raise ConfigError(key, network.get(key), problem, remedy)


def _read(line: str) -> tuple[ConfigDict, set[str]]:
    """The config of a stage, and the keys that the stage itself sets."""
    words = shlex.split(line)
    if not words:
        raise ValueError("it is empty")
    config, changed = changed_config(words[0], words[1:])
    if recipes.is_curriculum(config):
        raise ValueError("a stage cannot be a curriculum itself")
    return config, changed
