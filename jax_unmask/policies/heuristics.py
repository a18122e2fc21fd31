"""Hand-written unmasking rules, the baselines of learned policies.

Each rule fills at least one position in every row that has a legal one, and none in other rows;
equal scores go to the lower position. A rule's settings live in its params (`rule.params(...)`), as
scalars or as arrays [B] with one value per row, so that a sweep compiles once.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.policies.base import Action, Needs, Observation, Params, row_uniform
from jax_unmask.policies.distributions import argmax_legal
from jax_unmask.policies.order import by_rank, descending_ranks


def take_best(
    scores: Float[Array, "*B L"], legal: Bool[Array, "*B L"], count: Int[Array, "*B"]
) -> Bool[Array, "*B L"]:
    """The `count` best legal positions of each row, or all of them if there are fewer."""
    return legal & (descending_ranks(scores, legal) < count[..., None])


@dataclasses.dataclass(frozen=True)
class Rule:
    """Base of hand-written rules. They read confidences only, unless `needs` is overridden."""

    @property
    def needs(self) -> Needs:
        """Inputs that `Observation` must have."""
        return Needs()

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        """The legal positions that the rule fills; arguments as of `Policy.__call__`."""
        raise NotImplementedError

    def entropy_of(self, obs: Observation) -> Float[Array, "*B L"]:
        """Entropies of an observation; a `ValueError` if it has none."""
        if obs.entropy is None:
            raise ValueError(f"the observation lacks entropy, which {type(self).__name__} reads")
        return obs.entropy

    def __call__(self, params: Params, obs: Observation, keys: Array) -> Action:
        """See `Policy.__call__`. `log_prob` is 0: a rule is a baseline and does not learn."""
        fill = self.fill(params, obs, keys)
        return Action(fill=fill, log_prob=jnp.zeros(fill.shape[:-1], jnp.float32))


def column(setting: Array) -> Array:
    """A setting (scalar or one per row) reshaped to broadcast against [B, L]."""
    return jnp.asarray(setting)[..., None]


def setting(
    name: str, value: ArrayLike, low: float, high: float = np.inf, *, whole: bool = False
) -> Array:
    """A numeric setting as float32 (or int32), checked against its range."""
    numbers = np.asarray(value)
    if not np.issubdtype(numbers.dtype, np.number) or np.isnan(numbers).any():
        raise ValueError(f"{name}={value!r} is not a number")
    if np.any(numbers < low) or np.any(numbers > high):
        raise ValueError(f"{name}={value!r} must lie in [{low:g}, {high:g}]")
    if whole and np.any(numbers != np.floor(numbers)):
        raise ValueError(f"{name}={value!r} must be a whole number")
    return jnp.asarray(numbers, jnp.int32 if whole else jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Quota(Rule):
    """Base of rules that fill a number of positions which does not depend on confidence."""

    def params(self, tokens_per_step: ArrayLike = 1, steps: ArrayLike = 0) -> Params:
        """Settings: how many positions a step fills.

        Args:
            tokens_per_step: positions per step, at least 1.
            steps: if positive, each block is spread over this many steps instead, as in LLaDA's
                `get_num_transfer_tokens`: BL // steps positions per step, and one more in the
                first BL % steps of them. 0 uses `tokens_per_step`.
        """
        return quota_params(tokens_per_step, steps)


def quota_params(tokens_per_step: ArrayLike, steps: ArrayLike) -> Params:
    """Settings of a quota rule, checked; see `TopConfidence.params`."""
    return {
        "tokens_per_step": setting("tokens_per_step", tokens_per_step, 1, whole=True),
        "steps": setting("steps", steps, 0, whole=True),
    }


def quota(params: Params, obs: Observation) -> Int[Array, "*B"]:
    """Positions to fill at this step under the settings of a quota rule; at least 1."""
    steps = jnp.asarray(params["steps"])
    divisor = jnp.maximum(steps, 1)
    spread = obs.block_length // divisor + (obs.step_in_block < obs.block_length % divisor)
    return jnp.maximum(jnp.where(steps > 0, spread, params["tokens_per_step"]), 1)


@dataclasses.dataclass(frozen=True)
class Random(_Quota):
    """Fills positions in random order (LLaDA's `random` remasking)."""

    @property
    def needs(self) -> Needs:
        """Random keys."""
        return Needs(keys=True)

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        scores = row_uniform(keys, obs.legal.shape[-1:])
        return take_best(scores, obs.legal, quota(params, obs))


@dataclasses.dataclass(frozen=True)
class TopConfidence(_Quota):
    """Fills the most confident positions (LLaDA's `low_confidence` remasking)."""

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        return take_best(obs.confidence, obs.legal, quota(params, obs))


@dataclasses.dataclass(frozen=True)
class Margin(_Quota):
    """Fills the positions whose two largest probabilities are furthest apart.

    Kim et al. 2025, "Train for the Worst, Plan for the Best", arXiv 2502.06768.
    """

    @property
    def needs(self) -> Needs:
        """The two largest probabilities."""
        return Needs(top_k=2)

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        margin = obs.top_probs[..., 0] - obs.top_probs[..., 1]
        return take_best(margin, obs.legal, quota(params, obs))


@dataclasses.dataclass(frozen=True)
class LeftToRight(_Quota):
    """Fills the leftmost positions."""

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        nth = jnp.cumsum(obs.legal, axis=-1)
        return obs.legal & (nth <= quota(params, obs)[..., None])


@dataclasses.dataclass(frozen=True)
class _ThresholdParams(Rule):
    """Base of rules with a confidence threshold."""

    def params(self, threshold: ArrayLike = 0.9) -> Params:
        """Settings.

        Args:
            threshold: least confidence that fills a position, in [0, 1].
        """
        return {"threshold": setting("threshold", threshold, 0, 1)}


@dataclasses.dataclass(frozen=True)
class Threshold(_ThresholdParams):
    """Fills where confidence >= threshold, and the most confident position in any case.

    Wu et al. 2025, "Fast-dLLM", arXiv 2505.22618; per row, where some re-implementations test the
    whole batch.
    """

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        fill = obs.legal & (obs.confidence >= column(params["threshold"]))
        return fill | argmax_legal(obs.confidence, obs.legal)


@dataclasses.dataclass(frozen=True)
class FrontierThreshold(_ThresholdParams):
    """Fills the leftmost position, and wherever confidence >= threshold.

    A rule that knows position: a strong baseline where late tokens are confident too early.
    """

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        leftmost = obs.legal & (jnp.cumsum(obs.legal, axis=-1) == 1)
        fill = obs.legal & (obs.confidence >= column(params["threshold"]))
        return fill | leftmost


@dataclasses.dataclass(frozen=True)
class ConflictFree(_ThresholdParams):
    """Fills where confidence >= threshold unless a more confident position has the same candidate.

    For tasks in which equal tokens exclude each other (Sudoku): of several legal positions that
    propose one token only the most confident is filled. The most confident position of the row is
    filled in any case.
    """

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        confidence, legal = obs.confidence, obs.legal
        rank = descending_ranks(confidence, legal)
        better = rank[..., None, :] < rank[..., :, None]
        same = obs.candidate[..., :, None] == obs.candidate[..., None, :]
        beaten = jnp.any(better & same & legal[..., None, :], axis=-1)
        fill = legal & ~beaten & (confidence >= column(params["threshold"]))
        return fill | argmax_legal(confidence, legal)


@dataclasses.dataclass(frozen=True)
class Factor(Rule):
    """Fills the longest prefix of the sorted confidences with (n + 1)(1 - c_n) <= factor.

    The first of the n = 1, 2, ... is always taken. "Fast-dLLM", arXiv 2505.22618, section 3.3.

    Attributes:
        reference_compat: repeat a quirk of the public code: if the first position that fails is
            the row's last one, it is filled too.
    """

    reference_compat: bool = False

    def params(self, factor: ArrayLike = 1.0) -> Params:
        """Settings.

        Args:
            factor: bound on (n + 1)(1 - c_n), at least 0.
        """
        return {"factor": setting("factor", factor, 0)}

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        rank = descending_ranks(obs.confidence, obs.legal)
        ordered = by_rank(obs.confidence, rank)
        n = jnp.arange(1, ordered.shape[-1] + 1)
        passes = (ordered >= 1 - column(params["factor"]) / (n + 1)) | (n == 1)
        total = jnp.sum(obs.legal, axis=-1, keepdims=True)
        passes &= n <= total
        count = jnp.sum(jnp.cumprod(passes, axis=-1), axis=-1, keepdims=True)
        if self.reference_compat:
            count = jnp.where(count == total - 1, total, count)
        return obs.legal & (rank < count)


@dataclasses.dataclass(frozen=True)
class EntropyBounded(Rule):
    """Fills the most certain positions while their joint entropy stays bounded.

    Ben-Hamu et al. 2025, "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded
    Unmasking", arXiv 2505.24857: with positions in ascending order of entropy, the longest prefix U
    with sum_U H - max_U H <= gamma. In that order the maximum is the last entropy, so a position is
    filled if the entropies before it sum to at most gamma; the first always is.
    """

    @property
    def needs(self) -> Needs:
        """Entropies."""
        return Needs(entropy=True)

    def params(self, gamma: ArrayLike = 0.1) -> Params:
        """Settings.

        Args:
            gamma: bound in nats, at least 0.
        """
        return {"gamma": setting("gamma", gamma, 0)}

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        entropy = self.entropy_of(obs)
        rank = descending_ranks(-entropy, obs.legal)
        # Rounding can make an entropy slightly negative; a sum must not fall again.
        ordered = jnp.maximum(by_rank(entropy, rank), 0.0)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        within = (before <= column(params["gamma"])).at[..., 0].set(True)
        count = jnp.sum(jnp.cumprod(within, axis=-1), axis=-1, keepdims=True)
        return obs.legal & (rank < count)
