"""One batch of responses under one learner: states, log-probabilities, values, gradients."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jax_unmask.denoisers.adapters import with_adapters
from jax_unmask.denoisers.transformer import output_table
from jax_unmask.learners.advantages import trace_gae
from jax_unmask.learners.engine import (
    ALONE,
    Chunk,
    Pairs,
    Parts,
    Sums,
    accumulate,
    gather_slots,
    optimise,
    over_chunks,
    pack,
    split,
)
from jax_unmask.learners.losses import (
    KlEstimator,
    Normaliser,
    clamped_log_ratio,
    clipped_value_loss,
    kl_estimate,
    ratio_objective,
    token_weights,
)
from jax_unmask.learners.state import Params
from jax_unmask.learners.states.forward import AttentionBlocks, canvas_hidden
from jax_unmask.learners.states.responses import Responses, merged_steps, trainable_tokens
from jax_unmask.learners.states.surrogates import Autoregressive, Canvas, States, Surrogate, Trace
from jax_unmask.learners.states.token_log_prob import token_log_prob
from jax_unmask.learners.value_model import token_values
from jax_unmask.runtime.mesh import by_rows, constrain
from jax_unmask.settings import Settings, given, setting

Metrics = dict[str, Float[Array, ""]]


def describe(settings: TraceSettings, responses: Responses) -> Canvas:
    """What the surrogate reads of a batch of responses."""
    shrink = settings.surrogate.shrink if isinstance(settings.surrogate, Trace) else 1
    block_of = None
    if settings.blocks is not None:
        block_of = settings.blocks.of_canvas(responses.prompts.mask, responses.tokens.shape[1])
    group, time = merged_steps(responses.step_map, shrink, block_of)
    return Canvas(
        trainable=trainable_tokens(
            responses.tokens,
            responses.step_map,
            settings.denoiser.config.pad_token_id,
            settings.num_pads,
            settings.end_ids,
        ),
        group=group,
        time=time,
        block_of=jnp.zeros_like(group) if block_of is None else block_of,
        prompt=responses.prompts.mask,
    )


@dataclasses.dataclass(frozen=True)
class ValueSettings(Settings):
    """How a value model is trained beside the denoiser; see `value_model`.

    Attributes:
        optimizer: its own optimiser, at the learning rate `lr`.
    """

    optimizer: optax.GradientTransformation = given()
    enabled: bool = setting(
        False, "Train a value model: its advantages replace those of whole responses."
    )
    lr: float = setting(5e-6, "Its peak learning rate.", gt=0, le=100)
    gamma: float = setting(1.0, "Discount per step of a trace.", ge=0, le=1)
    lam: float = setting(1.0, "Lambda of GAE.", ge=0, le=1)
    clip: float = setting(
        0.2,
        "How far a value may move within a batch while its gradient lasts.",
        gt=0,
        le=1e6,
    )


@dataclasses.dataclass(frozen=True)
class TokenSettings(Settings):
    """The tokens of a state that are trained, and how they are walked over."""

    normaliser: Normaliser = setting("step", "Weights of tokens, see losses.token_weights.")
    num_pads: int = setting(
        -1, "Padding tokens trained per response, its first ones; -1 for all.", ge=-1
    )
    chunk_size: int = setting(64, "States whose activations are alive at once.", ge=1)
    positions_per_chunk: int = setting(256, "Positions whose logits are alive at once.", ge=1)


@dataclasses.dataclass(frozen=True)
class LossSettings(TokenSettings):
    """The loss of an update of `tracerl.TraceLearner`, and its optimiser steps."""

    clip: float = setting(
        0.2, "Clip range epsilon of the ratio (0.2 in arXiv 2509.06949).", gt=0, lt=1
    )
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
    passes: int = setting(1, "Passes over each batch.", ge=1)
    minibatches: int = setting(1, "Optimiser steps per pass.", ge=1)


@dataclasses.dataclass(frozen=True)
class TraceSettings(LossSettings):
    """Settings of `tracerl.TraceLearner`.

    Attributes:
        denoiser: the module to train.
        optimizer: see `optim.OptimizerSettings`.
        surrogate: the states that stand for a response.
        blocks: the blocks of a block-causal denoiser; None for full attention.
        value: how a value model is trained beside; None for none. Needs `surrogates.Trace`.
        end_ids: tokens that end a text; what stands behind counts as padding.
    """

    _: dataclasses.KW_ONLY
    denoiser: Any
    optimizer: optax.GradientTransformation
    surrogate: Surrogate = Trace()
    blocks: AttentionBlocks | None = None
    value: ValueSettings | None = None
    end_ids: tuple[int, ...] = ()

    def check(self) -> None:
        family, attention_block = self.denoiser.config.family, self.denoiser.config.attention_block
        if attention_block is None and self.blocks is not None:
            raise ValueError(
                f"blocks={self.blocks} are those of a block-causal denoiser, and this one of "
                f"family {family!r} attends to everything; give None"
            )
        causal = isinstance(self.surrogate, Autoregressive)
        if attention_block is not None and self.blocks is None and not causal:
            raise ValueError(
                f"the denoiser of family {family!r} is block-causal; give "
                "blocks=AttentionBlocks(length) with the block length of the rollout"
            )
        if self.value is not None and not isinstance(self.surrogate, Trace):
            raise ValueError(
                f"a value model needs the surrogate Trace, got {type(self.surrogate).__name__}: "
                "values belong to the steps of a trace"
            )

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps per batch; what a learning-rate schedule must count."""
        return self.passes * self.minibatches

    def num_states(self, length: int) -> int:
        """States of a response with a canvas of `length` positions."""
        return self.surrogate.num_states(
            length if self.blocks is None else min(self.blocks.length, length)
        )


@dataclasses.dataclass(frozen=True)
class TraceBatch:
    """One batch under one learner, inside a trace of `jax.jit`.

    Where only adapters are trained, `base` holds the frozen parameters below them. With several
    `parts`, each works on its part of every chunk.
    """

    learner: TraceSettings
    responses: Responses
    canvas: Canvas
    kept: Bool[Array, " B"]
    base: Params | None = None
    parts: Parts = ALONE

    @classmethod
    def of(
        cls,
        learner: TraceSettings,
        responses: Responses,
        kept: Array,
        base: Params | None = None,
        parts: Parts = ALONE,
    ) -> TraceBatch:
        return cls(learner, responses, describe(learner, responses), kept, base, parts)

    def whole(self, params: Params) -> Params:
        """All parameters of a denoiser, from those that are trained."""
        return params if self.base is None else with_adapters(self.base, params)

    def pass_key(self, key: Array, index: Array | int) -> Array:
        """Key of what the states of a pass draw; one stream beside that of `split`."""
        return jax.random.fold_in(jax.random.fold_in(key, 0), index)

    def states(self, key: Array, at: Chunk) -> States:
        """States of a chunk; those that do not count train nothing."""
        states = by_rows(self.learner.surrogate.states(self.canvas, key, at.step, at.row))
        return dataclasses.replace(states, trained=states.trained & at.valid[:, None])

    def wanted(self, key: Array) -> Bool[Array, "N B"]:
        """States that train something; `key` is that of the pass."""
        batch, length = self.responses.tokens.shape
        rows = jnp.arange(batch)

        def of_index(index: Array) -> Bool[Array, " B"]:
            indices = jnp.full(batch, index)
            states = self.learner.surrogate.states(self.canvas, key, indices, rows)
            return states.trained.any(axis=-1) & self.kept

        # One state index at a time: [N, B, L] would be the largest array of an update.
        return jax.lax.map(of_index, jnp.arange(self.learner.num_states(length)))

    def dealt(self, key: Array, index: Array) -> list[Pairs]:
        """The states of each optimiser step of a pass."""
        learner = self.learner
        wanted = self.wanted(self.pass_key(key, index))
        whole = learner.surrogate.unit == "sequence"
        split_key = jax.random.fold_in(jax.random.fold_in(key, 1), index)
        part = split(wanted, split_key, learner.minibatches, whole)
        return [pack(wanted & (part == number)) for number in range(learner.minibatches)]

    def take(self, at: Chunk) -> tuple[Any, Array]:
        """Prompts and tokens of a chunk."""
        of_rows = by_rows(jax.tree.map(lambda leaf: leaf[at.row], self.responses))
        return of_rows.prompts, of_rows.tokens

    def score(self, params: Params, at: Chunk, states: States) -> Float[Array, "C L"]:
        """Log-probabilities of the trained tokens of a chunk, 0 elsewhere."""
        learner, (prompts, tokens) = self.learner, self.take(at)
        params = self.whole(params)
        hidden = canvas_hidden(learner.denoiser, params, prompts, tokens, states, learner.blocks)
        scores = token_log_prob(
            output_table(learner.denoiser.config, params),
            hidden.reshape(-1, hidden.shape[-1]),
            tokens.reshape(-1),
            states.trained.reshape(-1),
            learner.positions_per_chunk,
            learner.temperature,
        )
        return constrain(scores.reshape(tokens.shape), "batch")

    def log_probs(self, params: Params, key: Array) -> Float[Array, "slots B L"]:
        """`TraceLearner.log_probs`; `key` is that of the pass."""
        learner = self.learner
        batch, length = self.responses.tokens.shape

        def scores(at: Chunk) -> tuple[Array, Array, Array]:
            states = self.states(key, at)
            slot = learner.surrogate.slot(at.step)
            return self.score(params, at, states), slot, states.trained

        shape = (learner.surrogate.num_slots, batch, length)
        return gather_slots(self.parts, scores, shape, pack(self.wanted(key)), learner.chunk_size)

    def all_log_probs(self, params: Params, key: Array) -> Float[Array, "sets slots B L"]:
        """Log-probabilities for every pass, or one set for all where nothing is drawn anew."""
        sets = self.learner.passes if self.learner.surrogate.redraws else 1
        return jax.lax.map(
            lambda index: self.log_probs(params, self.pass_key(key, index)), jnp.arange(sets)
        )

    def unit_loss(
        self, log_ratio: Array, reference_ratio: Array | None, advantage: Array
    ) -> tuple[Array, Array, Array]:
        """Loss, KL and reference KL of each unit from its log ratios, which are clamped."""
        learner = self.learner
        kl = kl_estimate(log_ratio, learner.kl)
        loss = learner.beta * kl - ratio_objective(log_ratio, advantage, learner.clip)
        reference_kl = jnp.zeros_like(kl)
        if reference_ratio is not None:
            reference_kl = kl_estimate(reference_ratio, learner.kl)
            loss += learner.reference_beta * reference_kl
        return loss, kl, reference_kl

    def train_policy(
        self,
        params: Params,
        opt_state: Any,
        advantages: Float[Array, "B L"],
        key: Array,
        reference: Params | None,
    ) -> tuple[Params, Any, Sums, Array, Array]:
        """All optimiser steps of the denoiser."""
        learner = self.learner
        # With a single step, the old log-probabilities are those of the step itself.
        old = self.all_log_probs(params, key) if learner.optimizer_steps > 1 else None
        anchor = None if reference is None else self.all_log_probs(reference, key)

        def gradient(params: Params, index: Array, pairs: Pairs) -> tuple[Params, Sums]:
            number = index if learner.surrogate.redraws else 0
            loss = StepLoss(
                batch=self,
                key=self.pass_key(key, index),
                advantages=advantages,
                old=None if old is None else old[number],
                anchor=None if anchor is None else anchor[number],
                pairs=pairs,
            )
            if learner.surrogate.unit == "sequence":
                return loss.sequence_gradient(params)
            return loss.gradient(params)

        return optimise(
            gradient,
            functools.partial(self.dealt, key),
            learner.optimizer,
            params,
            opt_state,
            learner.passes,
        )

    def train_values(
        self, params: Params, opt_state: Any, rewards: Float[Array, "B L"], key: Array
    ) -> tuple[Params, Any, Float[Array, "B L"], Metrics]:
        """All optimiser steps of the value model, and the advantages of the one before them."""
        learner, settings = self.learner, self.learner.value
        assert settings is not None
        first_key = self.pass_key(key, 0)
        batch, length = self.responses.tokens.shape

        def values_of(params: Params, at: Chunk, states: States) -> Float[Array, "C L"]:
            own = {**params, "backbone": self.whole(params["backbone"])}
            return token_values(learner.denoiser, own, *self.take(at), states, learner.blocks)

        def scores(at: Chunk) -> tuple[Array, Array, Array]:
            states = self.states(first_key, at)
            return values_of(params, at, states), jnp.zeros_like(at.step), states.trained

        pairs = pack(self.wanted(first_key))
        old = gather_slots(self.parts, scores, (1, batch, length), pairs, learner.chunk_size)[0]
        counted = self.canvas.trainable & self.kept[:, None]
        returns, advantages = trace_gae(
            rewards, old, self.canvas.time, counted, settings.gamma, settings.lam
        )

        def gradient(params: Params, index: Array, pairs: Pairs) -> tuple[Params, Sums]:
            def loss(params: Params, at: Chunk) -> tuple[Array, Sums]:
                states = self.states(self.pass_key(key, index), at)
                per_token = clipped_value_loss(
                    values_of(params, at, states), old[at.row], returns[at.row], settings.clip
                )
                weight = token_weights(states.trained, learner.normaliser)
                total = jnp.sum(weight * per_token) / pairs.count
                return total, dataclasses.replace(Sums.zero(), loss=jax.lax.stop_gradient(total))

            return accumulate(self.parts, loss, params, pairs, learner.chunk_size, batch)

        params, opt_state, sums, norm, steps = optimise(
            gradient,
            functools.partial(self.dealt, key),
            settings.optimizer,
            params,
            opt_state,
            learner.passes,
        )
        count = jnp.maximum(jnp.sum(counted), 1)
        centre = jnp.sum(returns) / count
        variance = jnp.sum(jnp.where(counted, jnp.square(returns - centre), 0.0)) / count
        metrics = {
            "value_loss": sums.loss / jnp.maximum(steps, 1.0),
            "value_grad_norm": norm / jnp.maximum(steps, 1.0),
            "value_error": jnp.sqrt(
                jnp.sum(jnp.square(jnp.where(counted, old - returns, 0.0))) / count
            ),
            "return_deviation": jnp.sqrt(variance),
        }
        return params, opt_state, advantages, metrics


@dataclasses.dataclass(frozen=True)
class StepLoss:
    """The loss of one optimiser step: the states in `pairs`."""

    batch: TraceBatch
    key: Array
    advantages: Float[Array, "B L"]
    old: Float[Array, "slots B L"] | None
    anchor: Float[Array, "slots B L"] | None
    pairs: Pairs

    def scored(self, params: Params, at: Chunk) -> tuple[States, Array, Array, Array, Array | None]:
        """States, weights, log-probabilities and log ratios of a chunk's tokens."""
        learner = self.batch.learner
        states = self.batch.states(self.key, at)
        new = self.batch.score(params, at, states)
        slot = learner.surrogate.slot(at.step)

        def ratio(other: Array) -> Array:
            return jnp.where(states.trained, new - other, 0.0)

        old = jax.lax.stop_gradient(new) if self.old is None else self.old[slot, at.row]
        anchor = None if self.anchor is None else ratio(self.anchor[slot, at.row])
        weight = token_weights(states.trained, learner.normaliser)
        return states, weight, new, ratio(old), anchor

    def gradient(self, params: Params) -> tuple[Params, Sums]:
        """Gradient of the mean over states, where each token has its own ratio."""
        learner = self.batch.learner

        def loss(params: Params, at: Chunk) -> tuple[Array, Sums]:
            states, weight, new, ratio, anchor = self.scored(params, at)
            ratio = clamped_log_ratio(ratio, jnp.zeros_like(ratio), learner.ratio_limit)
            if anchor is not None:
                anchor = clamped_log_ratio(anchor, jnp.zeros_like(anchor), learner.ratio_limit)
            per_token, kl, reference_kl = self.batch.unit_loss(
                ratio, anchor, self.advantages[at.row]
            )
            total = jnp.sum(weight * per_token) / self.pairs.count
            sums = self.sums(total, ratio, kl, reference_kl, states.trained)
            sums = _with_tokens(sums, states.trained, new)
            return total, jax.lax.stop_gradient(sums)

        rows = self.advantages.shape[0]
        return accumulate(self.batch.parts, loss, params, self.pairs, learner.chunk_size, rows)

    def sequence_gradient(self, params: Params) -> tuple[Params, Sums]:
        """Gradient of the mean over responses, where each response has one ratio.

        The ratio of a response needs all of its states, more than a chunk can hold. So a first walk
        adds up the log ratios, and a second one the gradient of each token's share in them.
        """
        learner, (batch, _) = self.batch.learner, self.advantages.shape
        ones = jnp.where(jnp.arange(self.pairs.order.shape[0]) < self.pairs.count, 1.0, 0.0)
        states_of = jnp.zeros(batch).at[self.pairs.order % batch].add(ones)
        share = 1.0 / jnp.maximum(states_of, 1.0)
        present = states_of > 0

        def add(carry: tuple[Array, Array], at: Chunk) -> tuple[Array, Array]:
            _, weight, _, ratio, anchor = self.scored(params, at)
            terms = [ratio, jnp.zeros_like(ratio) if anchor is None else anchor]
            ratios, anchors = (
                total.at[at.row].add(jnp.sum(weight * term, axis=-1) * share[at.row])
                for total, term in zip(carry, terms, strict=True)
            )
            return ratios, anchors

        zeros = (jnp.zeros(batch), jnp.zeros(batch))
        parts, size = self.batch.parts, learner.chunk_size
        ratios, anchors = parts.sum(over_chunks(parts, add, zeros, self.pairs, size, batch))

        def unit_losses(ratios: Array, anchors: Array) -> tuple[Array, Sums]:
            zero, limit = jnp.zeros(batch), learner.ratio_limit
            clamped = clamped_log_ratio(ratios, zero, limit)
            anchored = None if self.anchor is None else clamped_log_ratio(anchors, zero, limit)
            per_unit, kl, reference_kl = self.batch.unit_loss(
                clamped, anchored, self.advantages[:, 0]
            )
            total = jnp.sum(jnp.where(present, per_unit, 0.0)) / jnp.maximum(jnp.sum(present), 1)
            return total, self.sums(total, clamped, kl, reference_kl, present)

        slopes, sums = jax.grad(unit_losses, argnums=(0, 1), has_aux=True)(ratios, anchors)
        slope = (slopes[0] + slopes[1]) * share

        def loss(params: Params, at: Chunk) -> tuple[Array, Sums]:
            states, weight, new, _, _ = self.scored(params, at)
            total = jnp.sum(weight * new * slope[at.row][:, None])
            return total, jax.lax.stop_gradient(_with_tokens(Sums.zero(), states.trained, new))

        grads, tokens = accumulate(parts, loss, params, self.pairs, size, batch)
        return grads, sums + tokens

    def sums(
        self, loss: Array, log_ratio: Array, kl: Array, reference_kl: Array, units: Array
    ) -> Sums:
        ratio = jnp.exp(log_ratio)
        clip = self.batch.learner.clip
        return dataclasses.replace(
            Sums.zero(),
            loss=loss,
            kl=jnp.sum(jnp.where(units, kl, 0.0)),
            reference_kl=jnp.sum(jnp.where(units, reference_kl, 0.0)),
            clipped=jnp.sum(units & (jnp.abs(ratio - 1.0) > clip), dtype=jnp.float32),
            units=jnp.sum(units, dtype=jnp.float32),
            ratio_max=jnp.max(jnp.where(units, ratio, 0.0)),
        )


def _with_tokens(sums: Sums, trained: Array, log_prob: Array) -> Sums:
    return dataclasses.replace(
        sums,
        surprise=-jnp.sum(jnp.where(trained, log_prob, 0.0)),
        tokens=jnp.sum(trained, dtype=jnp.float32),
    )
