"""Hand-written unmasking rules, the baselines of learned policies.

Each rule fills at least one position in every row that has a legal one, and none in other rows;
equal scores go to the lower position. A rule's settings live in its params (`rule.params(...)`), as
scalars or as arrays [B] with one value per row, so that a sweep compiles once.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.policies.base import Action, Needs, Observation, Params, number, row_uniform
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

    needs: ClassVar[Needs] = Needs()

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        """The legal positions that the rule fills; arguments as of `Policy.__call__`."""
        raise NotImplementedError

    def entropy_of(self, obs: Observation) -> Float[Array, "*B L"]:
        """Entropies of an observation; a `ValueError` if it has none."""
        if obs.entropy is None:
            raise ValueError(f"the observation lacks entropy, which {type(self).__name__} reads")
        return obs.entropy

    def take_back(self, params: Params, obs: Observation) -> Bool[Array, "*B L"] | None:
        """The filled positions that become masks again; None for rules that take nothing back."""
        del params, obs
        return None

    def __call__(self, params: Params, obs: Observation, keys: Array) -> Action:
        """See `Policy.__call__`. `log_prob` is 0: a rule is a baseline and does not learn."""
        fill = self.fill(params, obs, keys)
        none = jnp.zeros(fill.shape[:-1], jnp.float32)
        return Action(fill=fill, log_prob=none, take_back=self.take_back(params, obs))


def column(setting: Array) -> Array:
    """A setting (scalar or one per row) reshaped to broadcast against [B, L]."""
    return jnp.asarray(setting)[..., None]


@dataclasses.dataclass(frozen=True)
class Quota(Rule):
    """Base of rules that fill a number of positions which does not depend on confidence."""

    of_canvas: ClassVar[bool] = False
    """Whether `steps` are those of the whole canvas, spread evenly over its blocks."""

    def params(self, tokens_per_step: ArrayLike = 1, steps: ArrayLike = 0) -> Params:
        """Settings: how many positions a step fills.

        Args:
            tokens_per_step: positions per step, at least 1.
            steps: if positive, each block (for `of_canvas`, the canvas) is spread over this many
                steps instead, as in LLaDA's `get_num_transfer_tokens`: BL // steps positions per
                step, and one more in the first BL % steps of them. 0 uses `tokens_per_step`.
        """
        return {
            "tokens_per_step": number("tokens_per_step", tokens_per_step, whole=True, ge=1),
            "steps": number("steps", steps, whole=True, ge=0),
        }

    def quota(self, params: Params, obs: Observation) -> Int[Array, "*B"]:
        """Positions to fill at this step."""
        return quota(params, obs, of_canvas=self.of_canvas)


def quota(params: Params, obs: Observation, *, of_canvas: bool = False) -> Int[Array, "*B"]:
    """Positions to fill at this step under the settings of a quota rule; at least 1."""
    steps = jnp.asarray(params["steps"])
    if of_canvas:
        blocks = obs.legal.shape[-1] // obs.block_length
        number = jnp.minimum(obs.block_start // obs.block_length, blocks - 1)
        own = (number + 1) * steps // blocks - number * steps // blocks
        steps = jnp.where(steps > 0, jnp.maximum(own, 1), 0)
    divisor = jnp.maximum(steps, 1)
    spread = obs.block_length // divisor + (obs.step_in_block < obs.block_length % divisor)
    return jnp.maximum(jnp.where(steps > 0, spread, params["tokens_per_step"]), 1)


@dataclasses.dataclass(frozen=True)
class Random(Quota):
    """Fills positions in random order; LLaDA's `random`: `steps` are those of the whole canvas."""

    of_canvas = True

    needs = Needs(keys=True)

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        scores = row_uniform(keys, obs.legal.shape[-1:])
        return take_best(scores, obs.legal, self.quota(params, obs))


@dataclasses.dataclass(frozen=True)
class TopConfidence(Quota):
    """Fills the most confident positions."""

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        return take_best(obs.confidence, obs.legal, self.quota(params, obs))


@dataclasses.dataclass(frozen=True)
class LowConfidence(TopConfidence):
    """LLaDA's `low_confidence`: `TopConfidence` whose `steps` are those of the whole canvas.

    LLaDA gives each block `steps` / blocks of them, which must be whole. Where it is not, blocks
    differ by one here; each has at least one.
    """

    of_canvas = True


@dataclasses.dataclass(frozen=True)
class Margin(Quota):
    """Fills the positions whose two largest probabilities are furthest apart.

    Kim et al. 2025, "Train for the Worst, Plan for the Best", arXiv 2502.06768.
    """

    needs = Needs(top_k=2)

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        return take_best(margin(obs), obs.legal, self.quota(params, obs))


def margin(obs: Observation) -> Float[Array, "*B L"]:
    """The largest probability minus the second largest."""
    return obs.top_probs[..., 0] - obs.top_probs[..., 1]


@dataclasses.dataclass(frozen=True)
class LeftToRight(Quota):
    """Fills the leftmost positions."""

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        nth = jnp.cumsum(obs.legal, axis=-1)
        return obs.legal & (nth <= self.quota(params, obs)[..., None])


@dataclasses.dataclass(frozen=True)
class _ThresholdParams(Rule):
    """Base of rules with a confidence threshold."""

    def params(self, threshold: ArrayLike = 0.9) -> Params:
        """Settings.

        Args:
            threshold: least confidence that fills a position, in [0, 1].
        """
        return {"threshold": number("threshold", threshold, ge=0, le=1)}


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
class FrontierThreshold(Rule):
    """Fills the leftmost position, and where confidence >= threshold among the first ones.

    A rule that knows position: a strong baseline where late tokens are confident too early.
    """

    def params(self, threshold: ArrayLike = 0.9, reach: ArrayLike = 0) -> Params:
        """Settings.

        Args:
            threshold: least confidence that fills a position, in [0, 1].
            reach: only the first `reach` legal positions are filled; 0 for any.
        """
        return {
            "threshold": number("threshold", threshold, ge=0, le=1),
            "reach": number("reach", reach, ge=0, whole=True),
        }

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        place, reach = jnp.cumsum(obs.legal, axis=-1), column(params["reach"])
        fill = obs.confidence >= column(params["threshold"])
        return obs.legal & (fill & ((place <= reach) | (reach == 0)) | (place == 1))


@dataclasses.dataclass(frozen=True)
class FrontierTold(Rule):
    """`FrontierThreshold` that is told alpha: a rule for long canvases, and a teacher of policies.

    It fills where the doubt 1 - p is at most 0.02 alpha^0.6, among the first 20 legal positions,
    above alpha 20 among the first 20 (alpha / 20)^0.85. Chosen on validation problems of
    `word_problems`, on a canvas of 128.
    """

    alphas: ClassVar[tuple[float, float]] = (0.01, 1000.0)

    def params(self, alpha: ArrayLike = 1.0) -> Params:
        """Settings.

        Args:
            alpha: weight of speed, as in the reward of a trained policy.
        """
        return {"alpha": number("alpha", alpha, gt=0)}

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        del keys
        alpha, place = column(params["alpha"]), jnp.cumsum(obs.legal, axis=-1)
        reach = 20 * jnp.maximum(1, alpha / 20) ** 0.85
        fill = (1 - obs.confidence <= 0.02 * alpha**0.6) & (place <= reach)
        return obs.legal & (fill | (place == 1))


@dataclasses.dataclass(frozen=True)
class Reconsider(Rule):
    """Fills where confidence >= threshold, and takes back what the denoiser doubts afterwards.

    Of a canvas that it would fill in its first step it leaves the least confident position for the
    second, which looks at the others once; unless all confidences are at least `sure`.
    """

    needs = Needs(filled=True)

    def params(
        self, threshold: ArrayLike = 0.6, doubt: ArrayLike = 0.01, sure: ArrayLike = 0.9
    ) -> Params:
        """Settings, all in [0, 1].

        Args:
            threshold: least confidence that fills a position.
            doubt: a token is taken back when its probability has fallen below 1 - doubt.
            sure: confidence above which nothing is looked at again.
        """
        settings = {"threshold": threshold, "doubt": doubt, "sure": sure}
        return {name: number(name, value, ge=0, le=1) for name, value in settings.items()}

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        confidence, legal = obs.confidence, obs.legal
        fill = legal & (confidence >= column(params["threshold"]))
        fill |= argmax_legal(confidence, legal)
        unsure = (legal & (confidence < column(params["sure"]))).any(axis=-1)
        at_once = (obs.step_in_block == 0) & (fill == legal).all(axis=-1) & unsure
        # A lone position has no others to be looked at.
        at_once &= legal.sum(axis=-1) > 1
        return fill & ~(at_once[..., None] & argmax_legal(-confidence, legal))

    def take_back(self, params: Params, obs: Observation) -> Bool[Array, "*B L"]:
        assert obs.filled is not None  # `needs` asks for it.
        return obs.filled.legal & (1.0 - obs.filled.probability > column(params["doubt"]))


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
        return {"factor": number("factor", factor, ge=0)}

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

    needs = Needs(entropy=True)

    def params(self, gamma: ArrayLike = 0.1) -> Params:
        """Settings.

        Args:
            gamma: bound in nats, at least 0.
        """
        return {"gamma": number("gamma", gamma, ge=0)}

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        rank, ordered, total = _cumulated(self.entropy_of(obs), obs.legal)
        return _fill_prefix(rank, total - ordered <= column(params["gamma"]), obs)


@dataclasses.dataclass(frozen=True)
class CumulatedEntropy(Rule):
    """JetEngine's `entropy_bounded`, with which TraDo rolls out (arXiv 2509.06949).

    With positions in ascending order of entropy, fills those whose cumulated entropy is below a
    bound; the first always. In `EntropyBounded` a position's own entropy does not count.
    """

    needs = Needs(entropy=True)

    def params(self, eb_threshold: ArrayLike = 0.35) -> Params:
        """Settings: the bound in nats, at least 0; JetEngine's default."""
        return {"eb_threshold": number("eb_threshold", eb_threshold, ge=0)}

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        rank, _, total = _cumulated(self.entropy_of(obs), obs.legal)
        return _fill_prefix(rank, total < column(params["eb_threshold"]), obs)


def _cumulated(entropy: Array, legal: Array) -> tuple[Array, Array, Array]:
    """Ranks by entropy; in their order the entropies, and their sums up to each, own included."""
    rank = descending_ranks(-entropy, legal)
    # Rounding can make an entropy slightly negative; a sum must not fall again.
    ordered = jnp.maximum(by_rank(entropy, rank), 0.0)
    return rank, ordered, jnp.cumsum(ordered, axis=-1)


def _fill_prefix(rank: Array, within: Array, obs: Observation) -> Bool[Array, "*B L"]:
    """The longest prefix of the ranks that is within a bound, at least one position."""
    within = within.at[..., 0].set(True)
    return obs.legal & (rank < jnp.sum(jnp.cumprod(within, axis=-1), axis=-1, keepdims=True))
