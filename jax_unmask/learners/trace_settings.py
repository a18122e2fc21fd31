"""What a TraceRL update does, as hashable settings."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import optax

from jax_unmask.learners.surrogates import Autoregressive, Surrogate, Trace
from jax_unmask.learners.trace_forward import AttentionBlocks
from jax_unmask.learners.trace_loss import KlEstimator, Normaliser


@dataclasses.dataclass(frozen=True)
class ValueSettings:
    """How the value model is trained; see `value_model`.

    Attributes:
        optimizer: its own optimiser.
        gamma: discount per step of a trace.
        lam: lambda of GAE.
        epsilon: how far a value may move within a batch while its gradient lasts.
    """

    optimizer: optax.GradientTransformation
    gamma: float = 1.0
    lam: float = 1.0
    epsilon: float = 0.2


@dataclasses.dataclass(frozen=True)
class TraceSettings:
    """Settings of `tracerl.TraceLearner`.

    Attributes:
        denoiser: the module to train.
        optimizer: see `optim.make_optimizer`.
        surrogate: the states that stand for a response.
        blocks: the blocks of a block-causal denoiser; None for full attention.
        value: how a value model is trained beside; None for none. Needs `surrogates.Trace`.
        epsilon: clip range of the ratio (0.2 published).
        beta: weight of the KL penalty against the parameters that the batch began with (0.01).
        reference_beta: weight of the KL penalty against frozen reference parameters.
        kl: estimator of both, see `trace_loss.kl_estimate`.
        normaliser: weights of tokens, see `trace_loss.token_weights`.
        ratio_limit: largest absolute log ratio.
        num_pads: padding tokens trained per response, see `trace.trainable_tokens`.
        end_ids: tokens that end a text; what stands behind counts as padding.
        temperature: temperature of the log-probabilities; 1 published, whatever the rollout's.
        passes: passes over each batch.
        minibatches: optimiser steps per pass.
        chunk_size: states whose activations are alive at once.
        positions_per_chunk: positions whose logits are alive at once.
    """

    denoiser: Any
    optimizer: optax.GradientTransformation
    surrogate: Surrogate = dataclasses.field(default_factory=Trace)
    blocks: AttentionBlocks | None = None
    value: ValueSettings | None = None
    epsilon: float = 0.2
    beta: float = 0.01
    reference_beta: float = 0.0
    kl: KlEstimator = "k3"
    normaliser: Normaliser = "step"
    ratio_limit: float = 10.0
    num_pads: int | None = None
    end_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    passes: int = 1
    minibatches: int = 1
    chunk_size: int = 64
    positions_per_chunk: int = 256

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < 1.0:
            raise ValueError(f"epsilon={self.epsilon} must lie in (0, 1)")
        for name in ("passes", "minibatches", "chunk_size", "positions_per_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("beta", "reference_beta"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("ratio_limit", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.num_pads is not None and self.num_pads < 0:
            raise ValueError(f"num_pads={self.num_pads} must not be negative; None trains all")
        for name, choices in (("kl", KlEstimator), ("normaliser", Normaliser)):
            if getattr(self, name) not in get_args(choices):
                listed = " or ".join(map(repr, get_args(choices)))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose {listed}")
        if self.denoiser.config.attention_block is None and self.blocks is not None:
            raise ValueError(
                f"blocks={self.blocks} are those of a block-causal denoiser, and this one of "
                f"family {self.denoiser.config.family!r} attends to everything; give None"
            )
        causal = isinstance(self.surrogate, Autoregressive)
        if self.denoiser.config.attention_block is not None and self.blocks is None and not causal:
            raise ValueError(
                f"the denoiser of family {self.denoiser.config.family!r} is block-causal; give "
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
