"""Group-relative policy optimisation (GRPO) of unmasking policies."""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float

from jax_unmask.learners.engine import (
    Chunk,
    Metrics,
    Minibatch,
    Minibatches,
    Params,
    Shards,
    Sums,
    TrainState,
    UpdateSettings,
    accumulate,
    optimise,
    over_chunks,
    over_rows,
    split,
)
from jax_unmask.learners.experts import ExpertSettings
from jax_unmask.learners.losses import clipped_objective, mixture_log_prob, step_weights
from jax_unmask.policies.base import Action, Observation
from jax_unmask.rollout.trajectory import Records
from jax_unmask.runtime import streams
from jax_unmask.settings import given, setting, setting_of


class TrainablePolicy(Protocol):
    """Interface of policies that the learner trains: hashable, with parameters {"network": ...,
    ...}.
    """

    def log_prob(self, params: Params, obs: Observation, action: Action) -> Float[Array, " N"]:
        """Log-probability of each row's action, differentiable in `params["network"]`."""
        ...

    def log_prob_and_entropy(
        self, params: Params, obs: Observation, action: Action
    ) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """`log_prob`, and the entropy of each row's action distribution in nats, in one pass."""
        ...


@struct.dataclass
class PolicyRows:
    """Arrays with a value per row of a batch; see `PolicyLearner.update`."""

    advantages: Float[Array, " B"]
    is_expert: Bool[Array, " B"] | None = None
    imitated: Float[Array, " B"] | None = None
    settings: dict[str, Float[Array, " B"]] = struct.field(default_factory=dict)

    def with_gradient(self) -> Bool[Array, " B"]:
        """Rows that have a gradient."""
        found = self.advantages != 0
        return found if self.imitated is None else found | (self.imitated != 0)


@dataclasses.dataclass(frozen=True)
class PolicyLearner(UpdateSettings):
    """Trains a policy's network by GRPO; hashable, so that one instance is one compiled update.

    The objective is that of arXiv 2512.09106: group-mean advantages, a clipped ratio per step
    (averaged by `losses.step_weights`), no KL term, no reference policy. See `engine` for the walk
    over the (step, row) pairs that carry gradient.

    Attributes:
        optimizer: it updates `params["network"]` only.
        group_size: G, policy rollouts per group; only the mixture likelihood of experts uses it.
        grad_clip: see `update_together`.
    """

    policy: TrainablePolicy = given()
    optimizer: optax.GradientTransformation = given()
    clip: float = setting_of(UpdateSettings, "clip", default=0.5)
    passes: int = setting_of(UpdateSettings, "passes", default=2)
    entropy_coefficient: float = setting(
        0.0,
        "Weight of the entropy bonus, in nats per legal position, averaged like the objective; "
        "0 (published) for none.",
        ge=0,
        le=1e6,
    )
    chunk_size: int = setting(512, "Pairs whose activations are alive at once.", ge=1)
    group_size: int = 1
    grad_clip: float | None = given(None)
    expert: ExpertSettings = given(ExpertSettings())

    def init(self, params: Params, key: Array) -> TrainState:
        """The state before the first update, from the policy's parameters and the run's key.

        Raises:
            ValueError: a setting beside the network differs between rows.
        """
        settings = {name: value for name, value in params.items() if name != "network"}
        for name, value in settings.items():
            if jnp.ndim(value):
                raise ValueError(
                    f"params[{name!r}] has shape {jnp.shape(value)}; training needs one value for "
                    "all rows"
                )
        # An explicit dtype strips weak types, which would compile the second update again.
        settings = {name: jnp.asarray(value, jnp.float32) for name, value in settings.items()}
        params = {"network": params["network"], **settings}
        return TrainState.first(params, self.optimizer.init(params["network"]), key)

    @functools.partial(jax.jit, static_argnums=0)
    def update(
        self,
        state: TrainState,
        records: Records,
        advantages: Float[Array, " B"],
        is_expert: Bool[Array, " B"] | None = None,
        imitated: Float[Array, " B"] | None = None,
        settings: dict[str, Float[Array, " B"]] | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Learns from one batch of rollouts.

        If all advantages are zero, parameters and optimiser state come back bit for bit, and
        `skipped` is 1. Rows without advantage are left out of the computation (their gradient is
        zero) unless there is an entropy bonus.

        Args:
            state: the training state.
            records: what the rollouts did; `action.log_prob` is that of the policy that acted.
                That of experts is replaced: by their likelihood under `state`'s parameters.
            advantages: one per row, see `advantages.group_advantages`.
            is_expert: rows that an expert produced, see `experts.with_experts`; None for none.
            imitated: weight, per row, of the log-likelihood of its actions in the objective, beside
                the advantage; None for none.
            settings: settings of the policy that differ between rows, such as its alpha, by name.

        Returns:
            The new state and scalar metrics. Averages run over all optimiser steps: `loss`;
            `entropy` in nats per legal position, estimated without bias as -log pi(u) of the
            policy's own actions (the exact one would cost a forward); `clip_fraction`, the share
            of pairs whose ratio left the clip range; `approx_kl` of the policy's own pairs by the
            estimator rho - 1 - log rho; `grad_norm` before clipping. Further `ratio_max`, `pairs`
            (pairs per pass) and `skipped` (0 or 1). A skipped batch has zeros.
        """
        rows = PolicyRows(advantages, is_expert, imitated, settings or {})
        return update_together((self,), state, (records,), (rows,))

    @functools.partial(jax.jit, static_argnums=0)
    def log_prob(
        self,
        params: Params,
        records: Records,
        wanted: Bool[Array, "T B"] | None = None,
        settings: dict[str, Float[Array, " B"]] | None = None,
    ) -> Float[Array, "T B"]:
        """Log-probabilities of recorded actions under `params`, in chunks.

        0 where a pair is not active, or not among those wanted (None for all). Settings as in
        `update`.
        """
        wanted = records.active if wanted is None else records.active & wanted
        steps, cells = records.active.shape[0], split(wanted)

        def body(out: Array, at: Chunk) -> Array:
            obs, action = _take(records, at)
            # The scatter drops what is out of bounds: cells that do not count.
            step = jnp.where(at.valid, at.step, steps)
            scores = self.policy.log_prob(_told(params, settings or {}, at), obs, action)
            return out.at[step, at.row].set(scores, mode="drop")

        zeros = jnp.zeros(wanted.shape, jnp.float32)
        return over_chunks(body, zeros, cells, cells.first, self.chunk_size)

    def check_batch(self, records: Records, rows: PolicyRows) -> None:
        """Raises a `ValueError` unless they belong together."""
        batch = records.active.shape[1]
        for name, values in {**vars(rows), **rows.settings, "settings": None}.items():
            if values is not None and values.shape != (batch,):
                raise ValueError(
                    f"{name} have shape {values.shape}, but the records hold {batch} rows; give "
                    "one per row"
                )
        if rows.is_expert is not None and self.expert.count < 1:
            raise ValueError(
                "is_expert was given, but expert.count = 0; the mixture likelihood needs their "
                "number per group"
            )

    def scored(self, params: Params, records: Records, rows: PolicyRows) -> Records:
        """The records; experts' actions have their log-probability under `params`."""
        if rows.is_expert is None:
            return records
        by_expert = jnp.broadcast_to(rows.is_expert, records.active.shape)
        scores = self.log_prob(params, records, by_expert, rows.settings)
        old = jnp.where(rows.is_expert, scores, records.action.log_prob)
        return dataclasses.replace(
            records, action=dataclasses.replace(records.action, log_prob=old)
        )

    def wanted(self, shards: Shards, records: Records, rows: PolicyRows) -> Bool[Array, "T B"]:
        """Steps that carry gradient; none without any signal, whatever the entropy bonus."""
        signal = rows.with_gradient()
        return records.active & (signal | (self.entropy_coefficient > 0)) & shards.any(signal)

    def gradient(
        self,
        shards: Shards,
        params: Params,
        records: Records,
        rows: PolicyRows,
        weights: Float[Array, "T B"],
        network: Params,
        cells: Minibatches,
        minibatch: Minibatch,
    ) -> tuple[Params, Sums]:
        """Gradient and sums of one optimiser step."""
        # A minibatch estimates the loss of the whole batch without bias.
        scale = cells.total / jnp.maximum(minibatch.count, 1)

        def loss(network: Params, at: Chunk) -> tuple[Array, Sums]:
            now = _told({**params, "network": network}, rows.settings, at)
            valid = at.valid
            obs, action = _take(records, at)
            entropy = None
            if self.entropy_coefficient > 0:
                new, entropy = self.policy.log_prob_and_entropy(now, obs, action)
            else:
                new = self.policy.log_prob(now, obs, action)
            old = action.log_prob
            surprise, by_policy = -new, valid
            if rows.is_expert is not None:
                expert = rows.is_expert[at.row]
                by_policy = valid & ~expert
                mixed = functools.partial(
                    mixture_log_prob, group_size=self.group_size, num_experts=self.expert.count
                )
                new = jnp.where(expert, mixed(new), new)
                old = jnp.where(expert, mixed(old), old)
            objective = clipped_objective(new, old, rows.advantages[at.row], self.clip)
            if rows.imitated is not None:
                objective -= rows.imitated[at.row] * surprise
            legal = jnp.sum(obs.decisions, axis=-1)
            if entropy is not None:
                objective += self.entropy_coefficient * entropy / jnp.maximum(legal, 1)
            total = -jnp.sum(jnp.where(valid, scale * weights[at.step, at.row], 0.0) * objective)
            difference = new - old
            ratio = jnp.exp(difference)
            return total, Sums.of(
                loss=total,
                units=jnp.sum(valid),
                clipped=jnp.sum(valid & (jnp.abs(ratio - 1.0) > self.clip)),
                kl=jnp.sum(jnp.where(by_policy, ratio - 1.0 - difference, 0.0)),
                kl_units=jnp.sum(by_policy),
                surprise=jnp.sum(jnp.where(by_policy, surprise, 0.0)),
                decisions=jnp.sum(jnp.where(by_policy, legal, 0)),
                ratio_max=jnp.max(jnp.where(valid, ratio, 0.0)),
            )

        return accumulate(loss, network, cells, minibatch, self.chunk_size, shards)


@functools.partial(jax.jit, static_argnums=0)
def update_together(
    learners: tuple[PolicyLearner, ...],
    state: TrainState,
    records: tuple[Records, ...],
    rows: tuple[PolicyRows, ...],
) -> tuple[TrainState, Metrics]:
    """Learns from batches of several environments, each optimiser step from a minibatch of all.

    Where there are several, a step follows the mean of their gradients, each of a norm of at most
    `grad_clip`, so that none outweighs the others.

    Args:
        learners: one per environment; optimiser, passes and minibatches are those of the first.
        state: the training state.
        records: what the rollouts of each environment did.
        rows: what else belongs to them.

    Returns:
        As `PolicyLearner.update`, of all environments. `grad_norm` is that of their mean.
    """
    for learner, each, own in zip(learners, records, rows, strict=True):
        learner.check_batch(each, own)
    inner = functools.partial(_update, learners)
    return over_rows(inner, state, records=records, rows=rows)


def _update(
    learners: tuple[PolicyLearner, ...],
    shards: Shards,
    state: TrainState,
    records: tuple[Records, ...],
    rows: tuple[PolicyRows, ...],
) -> tuple[TrainState, Metrics]:
    """`update_together` with the rows of one shard."""
    first, key = learners[0], state.step_key()
    # 1. Of each environment: the steps that carry gradient, and the gradient of a minibatch.
    gradients, wanted = [], []
    for learner, each, own in zip(learners, records, rows, strict=True):
        each = learner.scored(state.params, each, own)
        weights = step_weights(each.active, shards.sum)
        wanted.append(learner.wanted(shards, each, own))
        gradients.append(
            functools.partial(learner.gradient, shards, state.params, each, own, weights)
        )

    def minibatches(index: Array) -> tuple[Minibatches, ...]:
        own = streams.stream(key, "minibatches", index)
        return tuple(
            split(
                cells,
                first.minibatches,
                jax.random.fold_in(own, number) if number else own,
                shards=shards,
            )
            for number, cells in enumerate(wanted)
        )

    def mean_gradient(
        network: Params,
        index: Array,
        cells: tuple[Minibatches, ...],
        minibatch: tuple[Minibatch, ...],
    ) -> tuple[Params, Sums]:
        del index
        own = zip(gradients, cells, minibatch, strict=True)
        done = [gradient(network, packed, part) for gradient, packed, part in own]
        if len(done) == 1:
            return done[0]
        limited = [_limited(grads, first.grad_clip) for grads, _ in done]
        grads = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *limited)
        sums = functools.reduce(Sums.__add__, (sums for _, sums in done))
        return grads, dataclasses.replace(sums, loss=sums.loss / len(done))

    # 2. All optimiser steps.
    done = optimise(
        mean_gradient,
        minibatches,
        first.optimizer,
        state.params["network"],
        state.opt_state,
        first.passes,
    )
    state = state.after({**state.params, "network": done.params}, done.opt_state)
    return state, _named(done.metrics()) | {
        "pairs": done.sums.units / first.passes,
        "skipped": (done.steps == 0).astype(jnp.float32),
    }


def _limited(grads: Params, norm: float | None) -> Params:
    """A gradient of at most this norm; of any norm if it is None."""
    if norm is None:
        return grads
    limited, _ = optax.clip_by_global_norm(norm).update(grads, optax.EmptyState())
    return limited


def _take(records: Records, at: Chunk) -> tuple[Observation, Action]:
    """Observations and actions of a chunk's pairs."""
    return jax.tree.map(lambda x: x[at.step, at.row], (records.obs, records.action))


def _told(params: Params, settings: dict[str, Array], at: Chunk) -> Params:
    """The policy's params with the settings of a chunk's rows."""
    return {**params, **{name: values[at.row] for name, values in settings.items()}}


def _named(metrics: Metrics) -> Metrics:
    """The engine's metrics by the names that they have for a policy."""
    names = {"kl": "approx_kl", "surprise": "entropy"}
    return {names.get(n, n): x for n, x in metrics.items() if n != "reference_kl"}
