"""The samplers that denoiser families publish with their models: Dream's, SDAR's and LLaDA2's.

As in `heuristics`, settings live in the params, one value or one per row. SDAR's other two are
heuristics already: `low_confidence_static` is `TopConfidence`, `sequential` is `LeftToRight`, both
with `steps`; LLaDA2.0's is `Dynamic` with a threshold of 0.95.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.policies.base import Action, Needs, Observation, Params, number, row_uniform
from jax_unmask.policies.distributions import argmax_legal
from jax_unmask.policies.heuristics import Quota, Rule, column, margin, quota, take_best
from jax_unmask.settings import check_ranges, setting

_STEPS, _EPS = 64, 1e-3  # Of Dream.


@dataclasses.dataclass(frozen=True)
class _Dream(Rule):
    """Base of Dream's `diffusion_generate` (Ye et al. 2025, arXiv 2508.15487).

    Time runs from 1 to eps in equal steps; a step from time t to s fills the share 1 - s / t of the
    block's masks, rounded down, and the last step all of them. Rounding down makes early steps
    smaller: 24 masks in 8 steps go 2, 3, 3, 3, 3, 3, 3, 4.

    Attributes:
        reference_compat: let a step fill nothing, as the public code does where the share of the
            masks is less than one; by default it fills one then.
    """

    reference_compat: bool = False

    def params(self, steps: ArrayLike = _STEPS, eps: ArrayLike = _EPS) -> Params:
        """Settings.

        Args:
            steps: steps of a block, at least 1. More than a block has positions are of no use.
            eps: time at which the schedule ends, in [0, 1).
        """
        return {
            "steps": number("steps", steps, whole=True, ge=1),
            "eps": number("eps", eps, ge=0, le=0.999),
        }

    def share(self, params: Params, obs: Observation) -> Float[Array, "*B"]:
        """Fraction of the masks that this step fills."""
        steps = jnp.asarray(params["steps"])
        now, slope = obs.step_in_block, (params["eps"] - 1.0) / steps
        share = 1.0 - (1.0 + slope * (now + 1)) / (1.0 + slope * now)
        return jnp.where(now < steps - 1, share, 1.0)


@dataclasses.dataclass(frozen=True)
class Origin(_Dream):
    """Dream's `origin`: fills each position with the step's share as probability.

    By default the position with the smallest draw is filled where none would be.
    """

    needs = Needs(keys=True)

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        return self.fill_below(params, row_uniform(keys, obs.legal.shape[-1:]), obs)

    def fill_below(
        self, params: Params, uniform: Float[Array, "*B L"], obs: Observation
    ) -> Bool[Array, "*B L"]:
        """Fills where the draws [0, 1) are below the step's share."""
        fill = obs.legal & (uniform < column(self.share(params, obs)))
        if not self.reference_compat:
            fill |= argmax_legal(-uniform, obs.legal) & ~fill.any(axis=-1, keepdims=True)
        return fill


@dataclasses.dataclass(frozen=True)
class _Ranked(_Dream):
    """Base of those of Dream's samplers that rank the positions."""

    def params(
        self, steps: ArrayLike = _STEPS, eps: ArrayLike = _EPS, alg_temp: ArrayLike = 0.0
    ) -> Params:
        """Settings.

        Args:
            steps: steps of a block, at least 1. More than a block has positions are of no use.
            eps: time at which the schedule ends, in [0, 1).
            alg_temp: above 0 the positions are drawn without replacement from the softmax of their
                scores over this temperature; at 0 the best are taken.
        """
        return {**super().params(steps, eps), "alg_temp": number("alg_temp", alg_temp, ge=0)}

    def count(self, params: Params, obs: Observation) -> Int[Array, "*B"]:
        """Number of positions that this step fills."""
        masks = obs.legal.sum(axis=-1)
        count = jnp.floor(masks * self.share(params, obs)).astype(jnp.int32)
        return count if self.reference_compat else jnp.maximum(count, 1)

    def fill_best(
        self, params: Params, scores: Float[Array, "*B L"], obs: Observation, keys: Array
    ) -> Bool[Array, "*B L"]:
        """Fills this step's number of positions by score."""
        temperature = column(params["alg_temp"])
        noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[-1:]))(keys)
        # Gumbel noise on the logits of the softmax: the best k are a draw without replacement.
        drawn = scores / jnp.where(temperature > 0, temperature, 1.0) + noise
        scores = jnp.where(temperature > 0, drawn, scores)
        return take_best(scores, obs.legal, self.count(params, obs))


@dataclasses.dataclass(frozen=True)
class MaskgitPlus(_Ranked):
    """Dream's `maskgit_plus`: fills the most confident positions."""

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        return self.fill_best(params, obs.confidence, obs, keys)


@dataclasses.dataclass(frozen=True)
class TopkMargin(_Ranked):
    """Dream's `topk_margin`: fills where the two largest probabilities are furthest apart."""

    needs = Needs(top_k=2)

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        return self.fill_best(params, margin(obs), obs, keys)


@dataclasses.dataclass(frozen=True)
class Entropy(_Ranked):
    """Dream's `entropy`: fills the positions of least entropy."""

    needs = Needs(entropy=True)

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        return self.fill_best(params, -self.entropy_of(obs), obs, keys)


@dataclasses.dataclass(frozen=True)
class _ThresholdAndQuota(Rule):
    """Base of rules with a threshold and a number of positions per step."""

    def params(
        self, threshold: ArrayLike = 0.9, tokens_per_step: ArrayLike = 1, steps: ArrayLike = 0
    ) -> Params:
        """Settings; threshold is a confidence, in [0, 1], the others as of `TopConfidence`."""
        quota = Quota().params(tokens_per_step, steps)
        return {"threshold": number("threshold", threshold, ge=0, le=1), **quota}


@dataclasses.dataclass(frozen=True)
class DreamThreshold(_ThresholdAndQuota):
    """Fast-dLLM's `confidence_threshold` for Dream without a cache (arXiv 2505.22618).

    Fills where confidence >= threshold, but by the end of a step at most as many positions of the
    block as a quota per step would have filled; the most confident one in any case.
    """

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        filled = obs.block_length - obs.legal.sum(axis=-1)
        most = quota(params, obs) * (obs.step_in_block + 1) - filled
        best = take_best(obs.confidence, obs.legal, jnp.maximum(most, 1))
        fill = best & (obs.confidence >= column(params["threshold"]))
        return fill | argmax_legal(obs.confidence, obs.legal)


@dataclasses.dataclass(frozen=True)
class Dynamic(_ThresholdAndQuota):
    """SDAR's `low_confidence_dynamic` (arXiv 2510.06303): a threshold with a quota below it.

    Fills where confidence > threshold, if these are at least the step's quota; otherwise the quota
    of most confident positions. (JetEngine, which TraDo uses, takes the union of both; it is the
    same set, as fewer positions than the quota are all among the quota's most confident.)
    """

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        above: Bool[Array, "*B L"] = obs.legal & (obs.confidence > column(params["threshold"]))
        best = take_best(obs.confidence, obs.legal, quota(params, obs))
        return above | best


@dataclasses.dataclass(frozen=True)
class DynamicEdit(Dynamic):
    """LLaDA2.1's sampler: `Dynamic`, and tokens of the block are replaced while it is worked on.

    "Token editing" (arXiv 2602.08676): where the denoiser gives another token than the one that
    stands there a probability above a threshold of its own, that token is written instead. A block
    without masks gets further forwards until nothing changes.
    """

    max_post_steps: int = setting(
        16, "Forwards at most on a block after its last mask was filled.", ge=0
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Forwards on full blocks."""
        return Needs(post_steps=self.max_post_steps)

    def params(
        self,
        threshold: ArrayLike = 0.95,
        tokens_per_step: ArrayLike = 1,
        steps: ArrayLike = 0,
        editing_threshold: ArrayLike = 0.9,
    ) -> Params:
        """Settings of `Dynamic`, and the probability above which a token replaces another."""
        own = {"editing_threshold": number("editing_threshold", editing_threshold, ge=0, le=1)}
        return super().params(threshold, tokens_per_step, steps) | own

    def __call__(self, params: Params, obs: Observation, keys: Array) -> Action:
        """See `Policy.__call__`."""
        edit = ~obs.masked & (obs.confidence > column(params["editing_threshold"]))
        return dataclasses.replace(super().__call__(params, obs, keys), edit=edit)
