"""Recipe "joint": an unmasking policy and its denoiser learn from the same rollouts."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from jax_unmask import denoisers
from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.environment.bundle import Bundle, load_denoiser_config
from jax_unmask.environment.settings import RunSettings, TrainSettings
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.optim import OptimizerSettings
from jax_unmask.learners.tracerl import ValueSettings
from jax_unmask.recipes import base, tracerl
from jax_unmask.recipes.policy_grpo import (
    FrozenModel,
    PolicyGrpo,
    PolicyGrpoSettings,
    build_policy,
    check_but_examples,
)
from jax_unmask.recipes.rollouts import TrainingRollouts
from jax_unmask.runtime import streams
from jax_unmask.runtime.exports import places
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import (
    ConfigError,
    SettingError,
    Settings,
    from_config,
    setting,
    to_config,
    values_of,
)
from jax_unmask.tasks import data


@dataclasses.dataclass(frozen=True)
class DenoiserSettings(Settings):
    """Settings of the denoiser's learning, as those of recipe "tracerl"."""

    filter: tracerl.GroupBounds = tracerl.GroupBounds()
    reward: tracerl.TraceReward = tracerl.TraceRlSettings.reward
    learner: tracerl.TraceLearning = tracerl.TraceRlSettings.learner
    lora: denoisers.LoraSettings = tracerl.TraceRlSettings.lora
    optimizer: OptimizerSettings = tracerl.TraceRlSettings.optimizer


@dataclasses.dataclass(frozen=True)
class JointSettings(PolicyGrpoSettings):
    """Settings of `Joint`: those of "policy_grpo", and how the denoiser learns."""

    update_key: ClassVar[str] = "denoiser.learner.chunk_size"
    lora_key: ClassVar[str] = "denoiser.lora"

    model: tracerl.ReinforcedModel = tracerl.ReinforcedModel()  # type: ignore[assignment]
    # Where tokens are not drawn, groups differ by positions alone.
    rollout: TrainingRollouts = TrainingRollouts(vocab_chunk=16384, temperature=0.8)
    denoiser: DenoiserSettings = DenoiserSettings()
    turn: int = setting(
        0,
        "Steps of a turn: the policy learns in the first such steps, the denoiser in the next, and "
        "so on. 0: both learn in every step.",
        ge=0,
    )
    export: str | None = base.export_setting()

    training_only: ClassVar[tuple[str, ...]] = (
        *PolicyGrpoSettings.training_only,
        *("turn", "denoiser.optimizer"),
    )

    def check(self) -> None:
        self.require(
            self.turn < self.train.steps,
            "turn",
            f"the denoiser would not learn in any of `train.steps` = {self.train.steps}",
            "Give less, or 0 for both in every step",
        )
        super().check()
        base.check_export(self.export)
        base.check_schedule(
            self.optimizer, self.of_policy.train.steps * self.learner.optimizer_steps
        )
        with _own_keys():
            self.of_denoiser.check()

    def check_spread(self, placement: Placement) -> None:
        super().check_spread(placement)
        size = self.denoiser.learner.chunk_size
        self.require_spread(placement, self.update_key, size, "its states")

    @property
    def states_at_once(self) -> int:
        return self.denoiser.learner.chunk_size

    @functools.cached_property
    def of_policy(self) -> PolicyGrpoSettings:
        """The policy's side as a config of its own."""
        names = [field.name for field in dataclasses.fields(PolicyGrpoSettings)]
        model = FrozenModel(**values_of(self.model, FrozenModel))
        given = {name: getattr(self, name) for name in names}
        return PolicyGrpoSettings(**given | {"model": model, "train": self._own_train(0)})

    @functools.cached_property
    def of_denoiser(self) -> tracerl.TraceRlSettings:
        """The denoiser's side as a config of its own; its rollouts are the policy's."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunSettings)}
        learns, rollouts = self.denoiser, to_config(self.rollout)
        given["train"] = self._own_train(1)
        return tracerl.TraceRlSettings(
            **given,
            rollout=from_config(
                tracerl.TraceRollouts(), {**to_config(tracerl.TraceRollouts()), **rollouts}
            ),
            filter=tracerl.GroupFilter(rounds=1, **values_of(learns.filter, tracerl.GroupBounds)),
            reward=learns.reward,
            learner=learns.learner,
            value=ValueSettings(enabled=False),
            lora=learns.lora,
            optimizer=learns.optimizer,
            export=self.export,
        )

    def learns(self, side: Literal[0, 1], step: int) -> bool:
        """Whether the policy (0) or the denoiser (1) learns in a step, from 0."""
        return not self.turn or step // self.turn % 2 == side

    def _own_train(self, side: Literal[0, 1]) -> TrainSettings:
        """`train` with the steps in which a side learns: those that its schedule counts."""
        steps = sum(self.learns(side, step) for step in range(self.train.steps))
        return dataclasses.replace(self.train, steps=steps)


@contextlib.contextmanager
def _own_keys() -> Iterator[None]:
    """Names mistakes of the denoiser's side by the keys of `JointSettings`."""
    own = {field.name for field in dataclasses.fields(DenoiserSettings)}

    def rename(key: str) -> str:
        return f"denoiser.{key}" if key.partition(".")[0] in own else key

    try:
        yield
    except SettingError as error:
        raise error.renamed(rename) from error


class Joint(base.Recipe):
    """Policy GRPO and TraceRL on the same rollouts.

    A step rolls out the current policy on the current denoiser. The policy learns from the
    positions that it chose (`PolicyGrpo`), the denoiser from the tokens that it placed (`TraceRl`);
    each has a reward of its own, made of the same scores.

    Args:
        config: the settings.
        workdir: receives the policy and the denoiser at the end (`config.export` names another
            directory for the latter).
    """

    metrics = (*PolicyGrpo.metrics, *(f"{name}/denoiser" for name in tracerl.TraceRl.metrics))
    shown = ("reward", "accuracy", "nfe")
    defaults = JointSettings()
    trains = ("denoiser", "policy")
    build_policy = staticmethod(build_policy)

    @classmethod
    def metrics_of(cls, config: JointSettings) -> tuple[str, ...]:
        own = tracerl.TraceRl.metrics_of(config.of_denoiser)
        return (*PolicyGrpo.metrics_of(config.of_policy), *(f"{name}/denoiser" for name in own))

    @classmethod
    def check(cls, config: JointSettings, workdir: pathlib.Path) -> Bundle:
        del workdir
        bundle = check_but_examples(config.of_policy)
        shape = bundle.denoiser.config
        _check_final(config, shape)
        with _own_keys():
            tracerl.check_denoiser(config.of_denoiser, shape)
        base.check_examples(config, bundle, **tracerl.BATCHES)
        return bundle

    def __init__(self, config: JointSettings, workdir: pathlib.Path) -> None:
        _check_final(config, load_denoiser_config(config))
        self._config = config
        self._key = streams.stream(streams.root(config.seed), "policy")

        def load() -> Bundle:
            with _own_keys():
                self._denoiser = tracerl.TraceRl(config.of_denoiser, workdir)
            # Rollouts read the weights of the training state.
            return dataclasses.replace(self._denoiser.bundle, params=None)

        self._policy = PolicyGrpo(config.of_policy, workdir, load)

    def init(self) -> TrainState:
        return _joined(self._denoiser.init(), self._policy.init())

    def like(self) -> TrainState:
        return _joined(self._denoiser.like(), self._policy.like())

    def data(self) -> data.BatchIterator:
        return self._denoiser.data()

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, base.Metrics]:
        number = int(np.asarray(state.step))
        denoiser, policy = self._split(state)
        # 1. Rollouts.
        acting = self._denoiser.acting(denoiser)
        experience = self._policy.roll_out(acting, policy, batch, timer)
        del acting  # The update of the denoiser needs the memory.
        metrics = dict(experience.metrics)
        # 2. Updates. One whose turn it is not stays as it is, but counts its steps.
        if self._config.learns(0, number):
            policy, found = self._policy.learn(policy, experience, timer)
            metrics |= found
        if self._config.learns(1, number):
            useful = float(metrics["useful_forwards"])
            rolled = self._denoiser.round(experience.fetched, experience.scores, batch, useful)
            del experience
            denoiser, found = self._denoiser.learn(denoiser, [rolled], timer)
            metrics |= {f"{name}/denoiser": value for name, value in found.items()}
        after = _joined(denoiser, policy)
        return dataclasses.replace(after, step=state.step + 1, key=state.key), metrics

    def flops(self, metrics: Mapping[str, float]) -> float:
        rolled = self._policy.flops(metrics)
        if "states/denoiser" not in metrics:
            return rolled
        states, tokens = metrics["states/denoiser"], metrics["trained_tokens/denoiser"]
        shape = self._denoiser.bundle.denoiser.config
        return rolled + tracerl.update_flops(self._config.of_denoiser, shape, states, tokens)

    def current(self, state: TrainState) -> Bundle:
        """The denoiser as it is, where rollouts read it."""
        return self._denoiser.current(self._split(state)[0])

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        denoiser, policy = self._split(state)
        bundle = self._denoiser.finish(denoiser, workdir)
        exported = places(self.trains, workdir, self._config.export)
        model = dataclasses.replace(self._config.of_policy.model, path=str(exported["denoiser"]))
        made_for = dataclasses.replace(self._config.of_policy, model=model)
        self._policy.finish(policy, workdir, config=made_for)
        return dataclasses.replace(bundle, policy=exported["policy"])

    def _split(self, state: TrainState) -> tuple[TrainState, TrainState]:
        """The training states of the denoiser and of the policy."""
        (params, policy), (opt_state, moments) = (
            ({name: tree for name, tree in both.items() if name != "policy"}, both["policy"])
            for both in (state.params, state.opt_state)
        )
        # Updates donate their state, so nothing may be in both, nor in what is joined after them.
        of_denoiser = TrainState(jnp.copy(state.step), params, opt_state, jnp.copy(state.key))
        key = jnp.copy(self._key)
        return of_denoiser, TrainState(jnp.copy(state.step), policy, moments, key)

    @classmethod
    def blueprint(
        cls, config: JointSettings, shape: DenoiserConfig, placement: Placement
    ) -> base.Blueprint:
        _check_final(config, shape)
        with _own_keys():
            of_denoiser = tracerl.TraceRl.blueprint(config.of_denoiser, shape, placement)
        # Rollouts read the weights in the type of the products.
        read = dataclasses.replace(shape, param_dtype=shape.dtype)
        of_policy = PolicyGrpo.blueprint(config.of_policy, read, placement)
        state = of_policy.lasting["policy and optimiser"]
        rolled, update = of_denoiser.programs
        programs = [
            dataclasses.replace(each, made=rolled.made)
            if each.has_denoiser
            else dataclasses.replace(each, name="update of the policy")
            for each in of_policy.programs
        ]
        return base.Blueprint(
            {**of_denoiser.lasting, "policy and optimiser": state},
            (of_policy.passing, of_denoiser.passing),
            of_denoiser.trained,
            (*programs, dataclasses.replace(update, name="update of the denoiser")),
            of_denoiser.acting,
        )

    @classmethod
    def work(
        cls, config: JointSettings, shape: DenoiserConfig, nfe: int | None = None
    ) -> base.Work:
        of_policy = PolicyGrpo.work(config.of_policy, shape, nfe)
        of_denoiser = tracerl.TraceRl.work(config.of_denoiser, shape, of_policy.nfe)
        share = 0.5 if config.turn else 1.0
        return base.Work(of_policy.nfe, of_policy.rollout, share * of_denoiser.update)


def _check_final(config: JointSettings, shape: DenoiserConfig) -> None:
    """Raises a `ConfigError` for networks that take tokens back, ours and those of one's own."""
    if not build_policy(config.of_policy, shape).needs.final_tokens:
        network = config.policy.network
        by_setting = dict(network.values).get("take_back")
        key, value = ("take_back", True) if by_setting else ("kind", network.kind)
        problem = "it takes tokens back, and the denoiser's learner needs one step per token"
        remedy = "Set take_back to False" if by_setting else "Choose another one"
        raise ConfigError(f"policy.network.{key}", value, problem, remedy)


def _joined(denoiser: TrainState, policy: TrainState) -> TrainState:
    """One training state of both; step and key are the denoiser's."""
    return dataclasses.replace(
        denoiser,
        params={**denoiser.params, "policy": policy.params},
        opt_state={**denoiser.opt_state, "policy": policy.opt_state},
    )
