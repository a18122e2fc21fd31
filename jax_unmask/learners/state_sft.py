"""Supervised training of a denoiser in chosen states of given responses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jax_unmask.denoisers.sharding import keep
from jax_unmask.learners.engine import (
    Chunk,
    Metrics,
    Params,
    Shards,
    Sums,
    TrainState,
    accumulate,
    descend,
    over_copies,
)
from jax_unmask.learners.packing import PackedBatch, Packing
from jax_unmask.learners.states import Responses, StateBatch, StateSettings


@dataclasses.dataclass(frozen=True)
class StateLearner(StateSettings):
    """Trains a denoiser on given responses; hashable, so that one instance is one compiled step.

    The loss is the mean over the states of a surrogate of

        - sum_k w_k log p(token k | state)

    over the tokens k that the state trains (arXiv 2509.06949, sections 3 and 5.2).

    Attributes:
        optimizer: see `optim.OptimizerSettings`.
        full_length: the length that tokens weigh as if all canvases had it, for batches that are
            cut to their longest response and the normaliser "length"; None for the batch's own.
    """

    _: dataclasses.KW_ONLY
    optimizer: optax.GradientTransformation
    full_length: int | None = None

    def init(self, params: Params, key: Array) -> TrainState:
        """The state before the first step; the caller's parameters stay alive."""
        params = jax.tree.map(jnp.copy, params)
        opt_state = self.optimizer.init(params)
        return TrainState.first(params, opt_state, jnp.copy(key))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(
        self, state: TrainState, responses: Responses, packing: Packing | None = None
    ) -> tuple[TrainState, Metrics]:
        """Takes one optimiser step on one batch. The state passed in is donated: use the new one.

        Args:
            state: the training state.
            responses: B responses; `step_map` is read by `Trace` alone, but for -1,
                which keeps a token from being trained.
            packing: where several responses lie in one row; None for a row each. The loss is the
                same.

        Returns:
            The new state, and `loss` (the mean of -log p over trained tokens, whatever they weigh),
            `grad_norm` (before clipping), `trained_tokens`, `states`, and `forwards`, the rows that
            were computed; `skipped`, 1 if no text had a token to train.
        """
        return over_copies(self._step, state, responses, packing)

    def _step(
        self, shards: Shards, state: TrainState, responses: Responses, packing: Packing | None
    ) -> tuple[TrainState, Metrics]:
        count, length = responses.tokens.shape
        kept = jnp.ones(count, bool)
        canvas, key = self.describe(responses), state.step_key()
        batch = StateBatch(self, responses, canvas, kept, key, shards=shards)
        cells, packed = batch.minibatches(0), None
        states_in_all, scale = cells.first.count, 1.0
        if packing is not None:
            packed = PackedBatch(batch, packing)
            cells = packed.minibatches(batch.wanted(0))
        if self.normaliser == "length" and self.full_length is not None:
            scale = length / self.full_length

        def loss(params: Params, at: Chunk) -> tuple[Array, Sums]:
            if packed is not None:
                scores, weights, trained = packed.score(params, at)
            else:
                states = batch.states(0, at)
                scores, trained = batch.score(params, at, states), states.trained
                weights = batch.weights(states)
            total = -scale * jnp.sum(weights * scores) / states_in_all
            surprise = -jnp.sum(jnp.where(trained, scores, 0.0))
            return total, Sums.of(surprise=surprise, decisions=jnp.sum(trained))

        grads, sums = accumulate(loss, state.params, cells, cells.first, self.chunk_size, shards)
        params, opt_state, norm = descend(self.optimizer, state.params, state.opt_state, grads)
        return keep(state.after(params, opt_state)), {
            "loss": sums.metrics()["surprise"],
            "grad_norm": norm,
            "trained_tokens": sums.decisions,
            "states": states_in_all.astype(jnp.float32),
            "forwards": cells.first.count.astype(jnp.float32),
            "skipped": (states_in_all == 0).astype(jnp.float32),
        }
