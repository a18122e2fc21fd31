"""TraceRL: reinforcement learning of a denoiser on the states of its own trajectories."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jax_unmask.denoisers.sharding import keep
from jax_unmask.learners.advantages import outcome_rewards
from jax_unmask.learners.engine import (
    Chunk,
    Metrics,
    Minibatch,
    Minibatches,
    Optimised,
    Params,
    Shards,
    Sums,
    TrainState,
    UpdateSettings,
    accumulate,
    optimise,
    over_chunks,
    over_copies,
)
from jax_unmask.learners.losses import KlEstimator, clipped_objective, kl_estimate
from jax_unmask.learners.states import Responses, StateBatch, StateSettings, TokenSettings
from jax_unmask.learners.surrogates import States, Trace
from jax_unmask.learners.value_model import ValueSettings, init_value_model, train_values
from jax_unmask.runtime.mesh import constrain
from jax_unmask.settings import setting

__all__ = ["TraceLearner", "ValueSettings"]


@dataclasses.dataclass(frozen=True)
class LossSettings(UpdateSettings, TokenSettings):
    """The loss of an update of `TraceLearner`, and its optimiser steps."""

    beta: float = setting(
        0.01,
        "Weight of the KL penalty against the parameters that the batch began with.",
        ge=0,
        le=1e6,
    )
    reference_beta: float = setting(
        0.0, "Weight of the KL penalty against the weights at the start of the run.", ge=0, le=1e6
    )
    kl: KlEstimator = setting("k3", "Estimator of both penalties, see losses.kl_estimate.")
    ratio_limit: float = setting(10.0, "Largest absolute log ratio.", gt=0, le=80)
    temperature: float = setting(
        1.0,
        "Temperature of the log-probabilities; 1 published, whatever that of the rollout.",
        gt=0,
        le=1e4,
    )


@dataclasses.dataclass(frozen=True)
class TraceLearner(LossSettings, StateSettings):
    """Trains a denoiser on its own responses; hashable, so that one instance is one update.

    The loss of an optimiser step is the mean over its states (rows) of

        sum_k w_k [ beta KL_k - min(rho_k A_k, [rho_k within 1 ± clip] A_k) ]

    over the tokens k that the state trains: arXiv 2509.06949, eq. 3, for `Trace`. For a
    surrogate with one ratio per response the same function of that ratio is averaged over
    responses. Only trained positions go through the vocabulary projection.

    A value model may be trained beside it, on the states of a `Trace`.
    """

    _: dataclasses.KW_ONLY
    optimizer: optax.GradientTransformation
    value: ValueSettings | None = None

    def check(self) -> None:
        super().check()
        if self.value is not None and not isinstance(self.surrogate, Trace):
            raise ValueError(
                f"a value model needs the surrogate Trace, got {type(self.surrogate).__name__}: "
                "values belong to the steps of a trace"
            )

    def init(self, params: Params, key: Array, adapters: Params | None = None) -> TrainState:
        """The state before the first update: parameters "denoiser" and, if there is one, "value".

        Args:
            params: parameters of the denoiser; copied, so that the caller's stay alive.
            key: typed PRNG key of the training.
            adapters: low-rank adapters to train instead of all parameters; `update` then takes the
                parameters as `base`.
        """
        trained = params if adapters is None else adapters
        trees = {"denoiser": jax.tree.map(jnp.copy, trained)}
        opt_state = {"denoiser": self.optimizer.init(trained)}
        if self.value is not None:
            trees["value"] = init_value_model(params, adapters)
            opt_state["value"] = self.value.optimizer.init(trees["value"])
        return TrainState.first(trees, opt_state, jnp.copy(key))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def update(
        self,
        state: TrainState,
        responses: Responses,
        rewards: Float[Array, " B"] | Float[Array, "B L"],
        kept: Bool[Array, " B"],
        reference: Params | None = None,
        base: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Learns from one batch of responses. The state is donated: use the new one.

        Args:
            state: the training state.
            responses: B responses.
            rewards: reward of each response relative to its group, see
                `advantages.group_z_scores`: the advantage of its tokens, or what a value model
                learns to predict. With a value model also one reward per token.
            kept: the responses that count; the others may hold anything.
            reference: frozen parameters; needed where `reference_beta` is above 0.
            base: frozen parameters below the adapters, where only those are trained.

        Returns:
            The new state and scalar metrics. Means over units (tokens, or responses with one ratio
            each): `kl` to the old parameters, `reference_kl`, `clip_fraction`; `surprise`, -log p
            of the trained tokens; `ratio_max`; `loss` and `grad_norm` (before clipping), means over
            optimiser steps; `trained_tokens` and `states` per pass; `skipped`, 1 if nothing was
            there to train, because nothing was kept or texts were empty (then nothing changes).
            With a value model `value_loss`, `value_grad_norm`, `value_error` (root mean square of
            V - R before the update) and `return_deviation`.

        Raises:
            ValueError: rewards, or the reference, do not fit the settings.
        """
        self._check(responses, rewards, reference)
        return over_copies(self._learn, state, responses, rewards, kept, reference, base)

    def _learn(
        self,
        shards: Shards,
        state: TrainState,
        responses: Responses,
        rewards: Array,
        kept: Array,
        reference: Params | None,
        base: Params | None,
    ) -> tuple[TrainState, Metrics]:
        """`update`, on one copy of the model."""
        canvas, key = self.describe(responses), state.step_key()
        batch = StateBatch(self, responses, canvas, kept, key, base, shards)
        params, opt_state = dict(state.params), dict(state.opt_state)
        metrics: Metrics = {}
        # 1. Advantages: the rewards, or those over the value model, which learns first.
        if self.value is None:
            advantages = jnp.broadcast_to(rewards[:, None], responses.tokens.shape)
        else:
            if rewards.ndim == 1:
                rewards = outcome_rewards(rewards, batch.canvas.time, batch.canvas.trainable)
            advantages, done, metrics = train_values(
                batch,
                self.value,
                params["value"],
                opt_state["value"],
                rewards,
                self.passes,
                self.minibatches,
            )
            params["value"], opt_state["value"] = done.params, done.opt_state
        # 2. The denoiser.
        done = self._train_denoiser(
            batch, params["denoiser"], opt_state["denoiser"], advantages, reference
        )
        params["denoiser"], opt_state["denoiser"] = done.params, done.opt_state
        return keep(state.after(params, opt_state)), metrics | done.metrics() | {
            "trained_tokens": done.sums.decisions / self.passes,
            "states": jnp.sum(batch.wanted(0), dtype=jnp.float32),
            "skipped": (done.steps == 0).astype(jnp.float32),
        }

    def _train_denoiser(
        self,
        batch: StateBatch,
        params: Params,
        opt_state: optax.OptState,
        advantages: Float[Array, "B L"],
        reference: Params | None,
    ) -> Optimised:
        """All optimiser steps of the denoiser."""
        # One set of log-probabilities for all passes, or where these draw states anew one for each.
        sets = jnp.arange(self.passes if self.surrogate.redraws else 1)

        def log_probs(params: Params) -> Float[Array, "sets slots B L"]:
            found = jax.lax.map(functools.partial(batch.log_probs, params), sets)
            return constrain(found, None, None, "batch")

        # With a single step, the old log-probabilities are those of the step itself.
        old = log_probs(params) if self.optimizer_steps > 1 else None
        anchor = None if reference is None else log_probs(reference)

        def gradient(
            params: Params, index: Array, cells: Minibatches, minibatch: Minibatch
        ) -> tuple[Params, Sums]:
            number = index if self.surrogate.redraws else 0
            loss = TraceLoss(
                learner=self,
                batch=batch,
                index=index,
                advantages=advantages,
                old=None if old is None else old[number],
                anchor=None if anchor is None else anchor[number],
            )
            return loss.gradient(params, cells, minibatch)

        minibatches = functools.partial(batch.minibatches, number=self.minibatches)
        return optimise(gradient, minibatches, self.optimizer, params, opt_state, self.passes)

    def _check(self, responses: Responses, rewards: Array, reference: Params | None) -> None:
        batch, length = responses.tokens.shape
        shapes = [(batch,)] if self.value is None else [(batch,), (batch, length)]
        if rewards.shape not in shapes:
            raise ValueError(
                f"rewards have shape {rewards.shape}; give " + " or ".join(map(str, shapes))
            )
        if (self.reference_beta > 0) != (reference is not None):
            raise ValueError(
                f"reference_beta={self.reference_beta} and a reference "
                f"{'is' if reference is not None else 'is not'} given: give both or neither"
            )


@dataclasses.dataclass(frozen=True)
class TraceLoss:
    """The loss of an optimiser step of `TraceLearner`.

    Attributes:
        index: the pass, which decides on the states.
        old: log-probabilities under the parameters that the batch began with; None where those are
            the ones to differentiate at.
        anchor: log-probabilities under the reference parameters, or None.
    """

    learner: TraceLearner
    batch: StateBatch
    index: Array | int
    advantages: Float[Array, "B L"]
    old: Float[Array, "slots B L"] | None = None
    anchor: Float[Array, "slots B L"] | None = None

    def gradient(
        self, params: Params, cells: Minibatches, minibatch: Minibatch
    ) -> tuple[Params, Sums]:
        """Gradient and sums of the states of a minibatch: a mean over states, or responses."""
        if self.learner.surrogate.unit == "sequence":
            return self._of_responses(params, cells, minibatch)

        def loss(params: Params, at: Chunk) -> tuple[Array, Sums]:
            states, weight, new, ratio, anchor = self._scored(params, at)
            per_token, sums = self._per_unit(ratio, anchor, self.advantages[at.row], states.trained)
            total = jnp.sum(weight * per_token) / minibatch.count
            return total, sums + _of_decisions(states, new) + Sums.of(loss=total)

        size, shards = self.learner.chunk_size, self.batch.shards
        return accumulate(loss, params, cells, minibatch, size, shards)

    def _of_responses(
        self, params: Params, cells: Minibatches, minibatch: Minibatch
    ) -> tuple[Params, Sums]:
        """The mean over responses, where each response has one ratio.

        The ratio of a response needs all of its states, more than a chunk can hold. So a first walk
        adds up the log ratios, and a second one the gradient of each token's share in them.
        """
        batch = self.advantages.shape[0]
        size, shards = self.learner.chunk_size, self.batch.shards
        walk = functools.partial(
            over_chunks, cells=cells, minibatch=minibatch, chunk_size=size, shards=shards
        )

        # 1. The number of states of each response.
        def count(carry: Array, at: Chunk) -> Array:
            return carry.at[at.row].add(at.valid)

        states_of = shards.sum(walk(count, jnp.zeros(batch)))
        share, present = 1.0 / jnp.maximum(states_of, 1.0), states_of > 0

        # 2. The log ratio of each response, a mean over its states.
        def add(carry: tuple[Array, Array], at: Chunk) -> tuple[Array, Array]:
            _, weight, _, ratio, anchor = self._scored(params, at)
            terms = (ratio, jnp.zeros_like(ratio) if anchor is None else anchor)
            ratios, anchors = (
                total.at[at.row].add(jnp.sum(weight * term, axis=-1) * share[at.row])
                for total, term in zip(carry, terms, strict=True)
            )
            return ratios, anchors

        ratios, anchors = shards.sum(walk(add, (jnp.zeros(batch), jnp.zeros(batch))))

        # 3. The loss, and its slope in each log ratio.
        def of_ratios(ratios: Array, anchors: Array) -> tuple[Array, Sums]:
            anchored = None if self.anchor is None else anchors
            per_unit, sums = self._per_unit(ratios, anchored, self.advantages[:, 0], present)
            total = jnp.sum(jnp.where(present, per_unit, 0.0)) / jnp.maximum(jnp.sum(present), 1)
            return total, sums + Sums.of(loss=total)

        slopes, sums = jax.grad(of_ratios, argnums=(0, 1), has_aux=True)(ratios, anchors)
        slope = (slopes[0] + slopes[1]) * share

        # 4. Its gradient: the chain rule through the log-probabilities of each state.
        def loss(params: Params, at: Chunk) -> tuple[Array, Sums]:
            states, weight, new, _, _ = self._scored(params, at)
            total = jnp.sum(weight * new * slope[at.row][:, None])
            return total, _of_decisions(states, new)

        grads, decisions = accumulate(loss, params, cells, minibatch, size, shards)
        return grads, sums + decisions

    def _scored(
        self, params: Params, at: Chunk
    ) -> tuple[States, Array, Array, Array, Array | None]:
        """States, weights, log-probabilities and log ratios of a chunk's tokens."""
        states = self.batch.states(self.index, at)
        new = self.batch.score(params, at, states)
        slot = self.learner.surrogate.slot(at.step)

        def ratio(other: Array) -> Array:
            return jnp.where(states.trained, new - other, 0.0)

        old = jax.lax.stop_gradient(new) if self.old is None else self.old[slot, at.row]
        anchor = None if self.anchor is None else ratio(self.anchor[slot, at.row])
        return states, self.batch.weights(states), new, ratio(old), anchor

    def _per_unit(
        self, log_ratio: Array, anchor: Array | None, advantage: Array, units: Array
    ) -> tuple[Array, Sums]:
        """The loss of each unit, and the sums over those that count.

        Args:
            log_ratio: log ratio of new to old probabilities.
            anchor: log ratio of new to reference probabilities, or None.
            advantage: advantage of each unit.
            units: the units that count.
        """
        learner, zero = self.learner, jnp.zeros_like(log_ratio)
        # Outside of the limits no gradient flows.
        limits = {"min": -learner.ratio_limit, "max": learner.ratio_limit}
        log_ratio = jnp.clip(log_ratio, **limits)
        kl, reference_kl = kl_estimate(log_ratio, learner.kl), zero
        loss = learner.beta * kl - clipped_objective(log_ratio, zero, advantage, learner.clip)
        if anchor is not None:
            anchor = jnp.clip(anchor, **limits)
            reference_kl = kl_estimate(anchor, learner.kl)
            loss += learner.reference_beta * reference_kl
        ratio = jnp.exp(log_ratio)
        return loss, Sums.of(
            units=jnp.sum(units),
            clipped=jnp.sum(units & (jnp.abs(ratio - 1.0) > learner.clip)),
            kl=jnp.sum(jnp.where(units, kl, 0.0)),
            kl_units=jnp.sum(units),
            reference_kl=jnp.sum(jnp.where(units, reference_kl, 0.0)),
            ratio_max=jnp.max(jnp.where(units, ratio, 0.0)),
        )


def _of_decisions(states: States, log_prob: Array) -> Sums:
    surprise = -jnp.sum(jnp.where(states.trained, log_prob, 0.0))
    return Sums.of(surprise=surprise, decisions=jnp.sum(states.trained))
