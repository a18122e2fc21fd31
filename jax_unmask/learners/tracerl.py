"""TraceRL: reinforcement learning of a denoiser on the states of its own trajectories."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_unmask.denoisers.sharding import keep
from jax_unmask.learners.advantages import outcome_rewards
from jax_unmask.learners.engine import Parts, over_copies
from jax_unmask.learners.state import Params, TrainState, zero_step
from jax_unmask.learners.states.batch import Metrics, TraceBatch, TraceSettings, ValueSettings
from jax_unmask.learners.states.responses import Responses
from jax_unmask.learners.value_model import init_value_model

__all__ = ["TraceLearner", "TraceSettings", "ValueSettings"]


@dataclasses.dataclass(frozen=True)
class TraceLearner(TraceSettings):
    """Trains a denoiser on its own responses; hashable, so that one instance is one update.

    The loss of an optimiser step is the mean over its states (rows) of

        sum_k w_k [ beta KL_k - min(rho_k A_k, clip(rho_k, 1 - eps, 1 + eps) A_k) ]

    over the tokens k that the state trains: arXiv 2509.06949, eq. 3, for `surrogates.Trace`. For a
    surrogate with one ratio per response the same function of that ratio is averaged over
    responses. States are walked over in chunks of static size, adding up gradients, so memory does
    not grow with the batch; only trained positions go through the vocabulary projection.
    """

    def init(self, params: Params, key: Array, adapters: Params | None = None) -> TrainState:
        """The state before the first update.

        Args:
            params: parameters of the denoiser; copied, so that the caller's stay alive.
            key: typed PRNG key of the run.
            adapters: low-rank adapters to train instead of all parameters; `update` then wants the
                parameters as `base`.

        Returns:
            A state with parameters {"denoiser": ...} and, with a value model, "value".
        """
        trained = params if adapters is None else adapters
        trees = {"denoiser": jax.tree.map(jnp.copy, trained)}
        opt_state = {"denoiser": self.optimizer.init(trained)}
        if self.value is not None:
            trees["value"] = init_value_model(params, adapters)
            opt_state["value"] = self.value.optimizer.init(trees["value"])
        return TrainState(step=zero_step(), params=trees, opt_state=opt_state, key=jnp.copy(key))

    @functools.partial(jax.jit, static_argnums=0)
    def log_probs(
        self,
        params: Params,
        responses: Responses,
        kept: Bool[Array, " B"],
        key: Array,
        base: Params | None = None,
    ) -> Float[Array, "slots B L"]:
        """Log-probabilities of the tokens that a pass trains, 0 elsewhere.

        Args:
            params: parameters of the denoiser.
            responses: B responses.
            kept: the responses that count.
            key: typed PRNG key of the pass, for surrogates that draw.
            base: frozen parameters below, where `params` are adapters.
        """

        def of_copy(
            parts: Parts,
            params: Params,
            responses: Responses,
            kept: Array,
            key: Array,
            base: Params | None,
        ) -> Array:
            return TraceBatch.of(self, responses, kept, base, parts).log_probs(params, key)

        return over_copies(of_copy, params, responses, kept, key, base)

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
        parts: Parts,
        state: TrainState,
        responses: Responses,
        rewards: Array,
        kept: Array,
        reference: Params | None,
        base: Params | None,
    ) -> tuple[TrainState, Metrics]:
        """`update`, on one copy of the model."""
        batch = TraceBatch.of(self, responses, kept, base, parts)
        key, params, opt_state = state.step_key(), dict(state.params), dict(state.opt_state)
        metrics: Metrics = {}
        if self.value is None:
            advantages = jnp.broadcast_to(rewards[:, None], responses.tokens.shape)
        else:
            if rewards.ndim == 1:
                rewards = outcome_rewards(rewards, batch.canvas.time, batch.canvas.trainable)
            params["value"], opt_state["value"], advantages, metrics = batch.train_values(
                params["value"], opt_state["value"], rewards, key
            )
        policy = batch.train_policy(
            params["denoiser"], opt_state["denoiser"], advantages, key, reference
        )
        params["denoiser"], opt_state["denoiser"], sums, norm, steps = policy
        new_state = keep(
            dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        )
        return new_state, metrics | {
            "loss": sums.loss / jnp.maximum(steps, 1.0),
            "kl": sums.kl / jnp.maximum(sums.units, 1.0),
            "reference_kl": sums.reference_kl / jnp.maximum(sums.units, 1.0),
            "clip_fraction": sums.clipped / jnp.maximum(sums.units, 1.0),
            "surprise": sums.surprise / jnp.maximum(sums.tokens, 1.0),
            "ratio_max": sums.ratio_max,
            "grad_norm": norm / jnp.maximum(steps, 1.0),
            "trained_tokens": sums.tokens / self.passes,
            "states": jnp.sum(batch.wanted(batch.pass_key(key, 0)), dtype=jnp.float32),
            "skipped": (steps == 0).astype(jnp.float32),
        }

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
