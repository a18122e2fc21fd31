"""Rollouts of a training step, in batches: the host scores one while the device has the next."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers import Denoiser
from jax_unmask.denoisers.sharding import RULES, in_product_type
from jax_unmask.environment.bundle import Bundle
from jax_unmask.environment.settings import EvaluationSettings, RunSettings
from jax_unmask.policies.base import PerRow
from jax_unmask.recipes.base import TracedProgram, prompt_shapes
from jax_unmask.rollout import Prompts, RolloutSettings, Trajectory, rollout, row_keys, trimmed
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import setting, setting_of, values_of
from jax_unmask.tasks.base import Example, start_checks

Tree = TypeVar("Tree")


class Fetched(NamedTuple):
    """Rollouts on the host: the rows of this process's feed."""

    tokens: Int[np.ndarray, "B L"]  # Final canvases.
    step_map: Int[np.ndarray, "B L"]  # Step that filled each position, -1 if none did.
    nfe: Int[np.ndarray, " B"]
    checks: list[Callable[[], list[float]]]  # Give the scores of each batch, once they are there.

    def scores(self) -> Float[np.ndarray, " B"]:
        """Waits for the scores of all rows."""
        return np.asarray([score for scores in self.checks for score in scores()], np.float32)


@dataclasses.dataclass(frozen=True)
class TrainingRollouts(RolloutSettings):
    """The rollouts of a training step: several rows per prompt."""

    prompts_per_step: int = setting(16, "Prompts of a step (or round), over all devices.", ge=1)
    group_size: int = setting(8, "Rollouts G per prompt; a lone one has no advantage.", ge=2)
    batches: int = setting(
        1,
        "Batches into which the prompts of a step are divided, rolled out one after the other: "
        "slow checks of one overlap with the next. 1 keeps slots busiest.",
        ge=1,
    )
    stop_at_end: bool = setting_of(EvaluationSettings, "stop_at_end")

    def check(self) -> None:
        super().check()
        self.require_divides("batches", "prompts_per_step")

    @property
    def rows(self) -> int:
        """Rows of a step over all devices."""
        return self.prompts_per_step * self.group_size

    @property
    def rows_at_once(self) -> int:
        """Rows that are rolled out at one time, at most."""
        rows = self.rows // self.batches
        return min(self.slots or rows, rows)

    def settings(self, end_ids: tuple[int, ...], **given: Any) -> RolloutSettings:
        """The shape of the rollouts, from the tokens that end a text and what no config has."""
        given = {"prompt_rows": self.group_size, **given}
        stop_ids = end_ids if self.stop_at_end else ()
        return RolloutSettings(**values_of(self, RolloutSettings), stop_ids=stop_ids, **given)


@dataclasses.dataclass(frozen=True)
class RollingSettings(RunSettings):
    """Settings of a recipe whose steps roll out."""

    rollout_key: ClassVar[str] = "rollout.slots"

    rollout: TrainingRollouts = TrainingRollouts()

    @property
    def sampling(self) -> RolloutSettings:
        return self.rollout.settings((), prompt_rows=1)

    @property
    def rows(self) -> int:
        return self.rollout.rows

    @property
    def rows_at_once(self) -> int:
        return self.rollout.rows_at_once

    @property
    def rows_per_prompt(self) -> int:
        return self.rollout.group_size

    def check_spread(self, placement: Placement) -> None:
        del placement  # That of rollouts may be another one.
        placement, rollout = placements.for_rollouts(self), self.rollout
        prompts, feeds = rollout.prompts_per_step, placement.feeds
        key = "rollout.prompts_per_step"
        self.require_spread(placement, key, prompts, f"its {prompts} prompts", feeds)
        rows = rollout.rows // rollout.batches
        self.require_spread(placement, key, rows, f"the {rows} rows of a rollout")
        if rollout.slots:
            self.require_spread(placement, "rollout.slots", rollout.slots, "they")
        self.require(
            prompts % (feeds * rollout.batches) == 0,
            "rollout.batches",
            f"the {prompts // feeds} prompts of each of {feeds} processes that read data do not "
            "divide into them",
            "Give a divisor",
        )


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Rolls out batches of prompts, several rows per prompt.

    A row does not depend on the number of batches.

    Attributes:
        bundle: denoiser, tokenizer, task, devices.
        batches: number of batches of a step, one after the other on the device.
        buckets: shorter lengths that prompts may be padded to.
    """

    bundle: Bundle
    batches: int
    buckets: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Any, bundle: Bundle) -> "Rollouts":
        """The rollouts of a validated config."""
        return cls(bundle, config.rollout.batches, config.task.prompt_buckets)

    def weights(self, params: Any) -> Any:
        """Parameters of the denoiser as rollouts read them: in their layout, ready for products.

        Where that differs from training's they are copies, made once for the rollouts of a step.
        """
        params = in_product_type(params, self.bundle.denoiser.config.dtype)
        return self.bundle.placement.lay_out(params, RULES)

    def start(
        self,
        params: Any,
        policy: Any,
        policy_params: Any,
        prompts: Prompts,
        size: int,
        key: Any,
        settings: RolloutSettings,
        told: Mapping[str, Float[np.ndarray, " B"]] | None = None,
    ) -> list[Trajectory]:
        """Dispatches rollouts of `size` rows per prompt; those of one prompt lie together.

        Args:
            params: parameters of the denoiser, see `weights`.
            policy: chooses the positions to fill.
            policy_params: its parameters.
            prompts: prompts of this process's feed, NumPy arrays.
            size: rows per prompt.
            key: typed PRNG key of the batch.
            settings: shape of the rollouts.
            told: settings of the policy with a value per row, by name, beside its parameters.

        Returns:
            The trajectories of each batch.
        """
        placement = self.bundle.placement
        prompts = trimmed(prompts, self.buckets, placement)
        settings = dataclasses.replace(settings, prompt_rows=size)
        rows = jax.tree.map(lambda leaf: np.repeat(leaf, size, axis=0), prompts)
        count = len(rows.tokens)
        # The number of a row in the whole step, whichever process and batch it is in.
        identities = placement.feed * count + np.arange(count)
        key = placement.everywhere(key)
        with placement.active():
            return [
                rollout(
                    self.bundle.denoiser,
                    params,
                    policy,
                    self._told(policy_params, told, batch),
                    placement.rows(jax.tree.map(lambda leaf, batch=batch: leaf[batch], rows)),
                    row_keys(key, placement.rows(identities[batch])),
                    settings,
                )
                for batch in np.split(np.arange(count), self.batches)
            ]

    def _told(self, params: Any, told: Mapping[str, Any] | None, batch: np.ndarray) -> Any:
        """The policy's params with the settings of the rows of a batch."""
        if not told:
            return params
        rows = {name: PerRow(values[batch]) for name, values in told.items()}
        return {**params, **self.bundle.placement.rows(rows)}

    def fetch(
        self, batches: Sequence[Trajectory], examples: Sequence[Example], size: int
    ) -> Fetched:
        """Waits for each batch, and begins to score it while the device is at the next.

        `batches` are from `start`; `examples` the problems of this process's feed, `size` rows
        each.
        """
        bundle = self.bundle
        repeated = [example for example in examples for _ in range(size)]
        canvases, checks = [], []
        for index, batch in enumerate(batches):
            wanted = (batch.tokens, batch.step_map, batch.nfe)
            tokens, step_map, nfe = map(np.asarray, bundle.placement.fetch(wanted))
            canvases.append((tokens, step_map, nfe))
            asked = repeated[index * len(tokens) : (index + 1) * len(tokens)]
            checks.append(start_checks(bundle.task, asked, bundle.tokenizer.decode_batch(tokens)))
        tokens, step_map, nfe = map(np.concatenate, zip(*canvases, strict=True))
        return Fetched(tokens, step_map, nfe, checks)


def rollout_program(
    config: RollingSettings,
    denoiser: Denoiser,
    weights: Any,
    policy: Any,
    policy_params: Any,
    settings: RolloutSettings,
    *,
    is_copied: bool = False,
) -> TracedProgram:
    """A rollout of a step as it is traced, for a recipe's `blueprint`.

    Args:
        config: says how many rows there are, and their prompts.
        denoiser: the denoiser.
        weights: shapes and places of its parameters as rollouts read them.
        policy: chooses the positions to fill.
        policy_params: its parameters.
        settings: shape of the rollout.
        is_copied: the weights are copies that are made for the rollouts of a step.
    """
    rolling = placements.for_rollouts(config)
    with rolling.active():
        rows = config.rows // config.rollout.batches
        prompts, keys = prompt_shapes(rolling, rows, config.task.prompt_length)
        params = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, policy_params))
        params = rolling.everywhere(params)
        lowered = rollout.lower(denoiser, weights, policy, params, prompts, keys, settings)
    return TracedProgram("rollout", lowered, made=weights if is_copied else None)


def rows_of(rounds: Sequence[Tree], rows: Int[Array, " B"]) -> Tree:
    """The chosen rows of all rounds, one after the other; leaves [rows, ...]."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[rows], *rounds)


def choose_groups(
    kept: Bool[np.ndarray, " N"], wanted: int
) -> tuple[Int[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """The first `wanted` groups that are kept, filled up with others; and which are kept."""
    order = np.argsort(~kept, kind="stable")[:wanted]
    return order, kept[order]


def text_lengths(
    tokens: Int[np.ndarray, "B L"], step_map: Int[np.ndarray, "B L"], end_ids: tuple[int, ...]
) -> Int[np.ndarray, " B"]:
    """Filled tokens of each text, its end included."""
    ends: Bool[np.ndarray, "B L"] = np.isin(tokens, end_ids)
    before_end = np.cumsum(ends, axis=1) - ends == 0
    return (before_end & (step_map >= 0)).sum(axis=1)
