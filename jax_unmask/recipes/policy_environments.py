"""Recipe "policy_environments": one unmasking policy learns on several tasks and denoisers."""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.environment.bundle import Bundle, check_split, load_denoiser_config, load_task
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.policy_grpo import update_together
from jax_unmask.recipes import base
from jax_unmask.recipes.policy_grpo import (
    PolicyGrpo,
    PolicyGrpoSettings,
    build_policy,
    check_denoiser,
    traced_update,
)
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.config import change
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.runtime.streams import stream
from jax_unmask.settings import ConfigError, SettingError, from_config, setting, to_config
from jax_unmask.tasks.data import Batch, BatchIterator

# Settings of an environment; the policy, its optimiser and its reward are those of all.
GROUPS = ("task", "model", "rollout", "expert")
# Metrics that a step has of each environment too, as in nfe/sudoku.
_OF_EACH = ("reward", "accuracy", "nfe", "groups_with_signal")
_REMEDY = "Write KEY=VALUE KEY=VALUE ..., as in 'model.path=sudoku task.name=sudoku'"


@dataclasses.dataclass(frozen=True)
class PolicyEnvironmentsSettings(PolicyGrpoSettings):
    """Settings of `PolicyEnvironments`: those of every environment, and what each one changes."""

    environments: tuple[str, ...] = setting(
        ("task.name=gsm8k", "task.name=math"),
        "One line per environment: KEY=VALUE ..., where each KEY is one of task, model, rollout or "
        "expert.",
    )

    def check(self) -> None:
        if not self.environments:
            problem = "there is nothing to train on"
            raise SettingError("environments", self.environments, problem, "Name at least one")
        for each in self.each:  # Reading a line checks its settings one by one.
            base.check_schedule(each.optimizer, each.train.steps * each.learner.optimizer_steps)
        self.require(
            self.checkpoint.best_metric.partition("/")[2] in ("", *self.labels),
            "checkpoint.best_metric",
            "there is no such environment",
            f"Choose among {', '.join(self.labels)}",
        )

    def check_spread(self, placement: Placement) -> None:
        for index, each in enumerate(self.each):
            with self.naming(index):
                each.check_spread(placement)

    @functools.cached_property
    def each(self) -> tuple[PolicyGrpoSettings, ...]:
        """The settings of each environment, as if there were no other."""
        fields = (field.name for field in dataclasses.fields(PolicyGrpoSettings))
        shared = PolicyGrpoSettings(**{name: getattr(self, name) for name in fields})
        return tuple(self._read(shared, index) for index in range(len(self.environments)))

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each environment in the metrics: its task, numbered where that is no name."""
        tasks = [each.task.name.rpartition(".")[2] for each in self.each]
        return tuple(
            task if tasks.count(task) == 1 else f"{task}_{index}"
            for index, task in enumerate(tasks)
        )

    @property
    def rows(self) -> int:
        return max(each.rows for each in self.each)

    @property
    def rows_at_once(self) -> int:
        return max(each.rows_at_once for each in self.each)

    @contextlib.contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Names the environment in mistakes of settings that it can have changed."""
        try:
            yield
        except SettingError as error:
            if error.key.partition(".")[0] not in GROUPS:
                raise
            line, problem = self.environments[index], str(error.within("")).rstrip(".")
            raise ConfigError(f"environments[{index}]", line, problem, _REMEDY) from error

    def _read(self, shared: PolicyGrpoSettings, index: int) -> PolicyGrpoSettings:
        """The settings that all share, with the changes of a line."""
        line, config = self.environments[index], to_config(shared)
        try:
            for key in change(config, shlex.split(line), line):
                if key.partition(".")[0] not in GROUPS:
                    allowed = ", ".join(GROUPS)
                    raise ValueError(f"{key} is the same in all; choose among {allowed}")
            return from_config(shared, config)
        except ValueError as error:
            problem = str(error).rstrip(".")
            raise SettingError(f"environments[{index}]", line, problem, _REMEDY) from error


class OfEach(BatchIterator):
    """A batch of every environment at a time; their positions are saved together."""

    def __init__(self, iterators: Sequence[BatchIterator]) -> None:
        self._iterators = iterators

    def __next__(self) -> Any:
        return [next(each) for each in self._iterators]

    def get_state(self) -> dict[str, Any]:
        return {"environments": [each.get_state() for each in self._iterators]}

    def set_state(self, state: dict[str, Any]) -> None:
        saved = state.get("environments", [])
        if len(saved) != len(self._iterators):
            raise ValueError(
                f"saved data position has {len(saved)} environments, this run has "
                f"{len(self._iterators)}; restore the old setting, or start in a new workdir"
            )
        for each, position in zip(self._iterators, saved, strict=True):
            each.set_state(position)


class PolicyEnvironments(base.Recipe):
    """`PolicyGrpo` in several environments: tasks, denoisers, canvases, block lengths, caches.

    A step rolls out a batch of each environment and takes one update from all, see
    `learners.policy_grpo.update_together`. Environments of the same denoiser share its weights.
    """

    metrics = (*PolicyGrpo.metrics, *(f"{name}/*" for name in _OF_EACH))
    shown = ("reward", "accuracy", "nfe")
    defaults = PolicyEnvironmentsSettings()
    trains = ("policy",)
    build_policy = staticmethod(build_policy)

    @classmethod
    def metrics_of(cls, config: PolicyEnvironmentsSettings) -> tuple[str, ...]:
        # Of a step are those that all environments have.
        shared = set.intersection(*(set(PolicyGrpo.metrics_of(each)) for each in config.each))
        own = (f"{name}/{label}" for label in config.labels for name in _OF_EACH)
        return (*(name for name in PolicyGrpo.metrics if name in shared), *own)

    @classmethod
    def check(cls, config: PolicyEnvironmentsSettings, workdir: pathlib.Path) -> Bundle:
        _shapes(config)
        bundles = []
        for index, each in enumerate(config.each):
            with config.naming(index):
                bundles.append(PolicyGrpo.check(each, workdir))
        return bundles[0]

    def __init__(self, config: PolicyEnvironmentsSettings, workdir: pathlib.Path) -> None:
        self._labels, shapes = config.labels, _shapes(config)
        self._config = config
        # Of all environments, before the weights of any are loaded.
        tasks = []
        for index, (each, shape) in enumerate(zip(config.each, shapes, strict=True)):
            with config.naming(index):
                check_denoiser(each, shape)
                tasks.append(load_task(each))
                check_split(each, tasks[index], "train")
        loaded: dict[Any, Bundle] = {}
        self._recipes = []
        for each, task in zip(config.each, tasks, strict=True):
            bundle = loaded.get(each.model)
            load = None
            if bundle is not None:
                load = functools.partial(dataclasses.replace, bundle, task=task)
            recipe = PolicyGrpo(each, workdir, load)
            loaded[each.model] = recipe.bundle
            self._recipes.append(recipe)

    def init(self) -> TrainState:
        return self._recipes[0].init()

    def like(self) -> TrainState:
        return self._recipes[0].like()

    def data(self) -> BatchIterator:
        return OfEach([recipe.data() for recipe in self._recipes])

    def step(
        self, state: TrainState, batch: Sequence[Batch], timer: Timer
    ) -> tuple[TrainState, base.Metrics]:
        # 1. Rollouts, with random numbers of each environment's own.
        experiences = [
            recipe.roll_out(
                recipe.bundle.params,
                state,
                part,
                timer,
                stream(state.step_key(), "environment", number),
            )
            for number, (recipe, part) in enumerate(zip(self._recipes, batch, strict=True))
        ]
        # 2. One update.
        with timer.measure("update"):
            records, rows, prepared = zip(
                *(
                    recipe.prepare(state, experience)
                    for recipe, experience in zip(self._recipes, experiences, strict=True)
                ),
                strict=True,
            )
            with placements.from_config(self._config).active():
                learners = tuple(recipe.learner for recipe in self._recipes)
                state, learned = update_together(learners, state, records, rows)
            jax.block_until_ready(state.params)
        # 3. Metrics: means over environments, and those of each.
        of_each = [
            {**experience.metrics, **metrics}
            for experience, metrics in zip(experiences, prepared, strict=True)
        ]
        common = set.intersection(*(set(metrics) for metrics in of_each))
        means = {name: sum(each[name] for each in of_each) / len(of_each) for name in common}
        return state, means | learned | {
            f"{name}/{label}": metrics[name]
            for label, metrics in zip(self._labels, of_each, strict=True)
            for name in _OF_EACH
        }

    def flops(self, metrics: Mapping[str, float]) -> float:
        return sum(
            recipe.flops({"nfe": metrics[f"nfe/{label}"]})
            for label, recipe in zip(self._labels, self._recipes, strict=True)
        )

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        """Exports the policy; evaluations after training measure the first environment."""
        return self._recipes[0].finish(state, workdir, config=self._config)

    @classmethod
    def blueprint(
        cls, config: PolicyEnvironmentsSettings, shape: DenoiserConfig, placement: Placement
    ) -> base.Blueprint:
        del shape  # Each environment has its own.
        planned = [
            PolicyGrpo.planned(each, load_denoiser_config(each), placement) for each in config.each
        ]
        weights = {
            f"denoiser {each.model.path}": step.denoiser
            for each, step in zip(config.each, planned, strict=True)
        }
        rollouts = [
            dataclasses.replace(program, name=f"{label}: {program.name}")
            for label, step in zip(config.labels, planned, strict=True)
            for program in step.rollouts
        ]
        state = planned[0].state
        return base.Blueprint(
            {**weights, "policy and optimiser": state},
            [step.passing for step in planned],
            state.params["network"],
            (*rollouts, traced_update(planned, placement)),
            weights,
        )

    @classmethod
    def work(
        cls, config: PolicyEnvironmentsSettings, shape: DenoiserConfig, nfe: int | None = None
    ) -> base.Work:
        del shape
        works = [PolicyGrpo.work(each, load_denoiser_config(each), nfe) for each in config.each]
        longest = max(work.nfe for work in works)
        return base.Work(
            longest, sum(work.rollout for work in works), sum(work.update for work in works)
        )


def _shapes(config: PolicyEnvironmentsSettings) -> list[DenoiserConfig]:
    """Shapes of the environments' denoisers, for all of which one policy has to fit."""
    shapes = list(map(load_denoiser_config, config.each))
    if len(set(map(build_policy, config.each, shapes))) > 1:
        raise ConfigError(
            "policy.network.kind",
            config.policy.network.kind,
            "its shape depends on the denoiser, and the environments have several",
            "Choose a network that reads none of its hidden states, such as confidence",
        )
    return shapes
