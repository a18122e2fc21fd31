"""Distributions over sets of positions: sampling, exact log-likelihoods and entropies.

All functions are pure, work in float32 on rows of L positions with any leading axes, look only at
positions with `legal` set (logits elsewhere may be anything, -inf included), and give 0 with zero
gradient to rows that have no legal position. Logits are already divided by the policy temperature;
`scale` is a positive factor on Bernoulli probabilities, broadcast against [*B]. Equations:
arXiv 2512.09106, section 4 and appendix.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.policies.order import descending_ranks

# Stands for -inf where a gradient flows: differences of infinities would make it NaN.
_NEGATIVE = -1e30

Scale = float | Float[Array, "..."]


def argmax_legal(scores: Float[Array, "*B L"], legal: Bool[Array, "*B L"]) -> Bool[Array, "*B L"]:
    """One-hot of the best legal position (the first of equals); all False where none is legal."""
    best = jnp.argmax(jnp.where(legal, scores, -jnp.inf), axis=-1, keepdims=True)
    # A legal position may itself score -inf; then argmax is 0 whether legal or not.
    first_legal = jnp.argmax(legal, axis=-1, keepdims=True)
    best = jnp.where(jnp.take_along_axis(legal, best, axis=-1), best, first_legal)
    return (jnp.arange(scores.shape[-1]) == best) & legal


def _legal_logits(logits: Array, legal: Array) -> Array:
    return jnp.where(legal, logits, 0.0).astype(jnp.float32)


def bernoulli_probs(
    logits: Float[Array, "*B L"], legal: Bool[Array, "*B L"], scale: Scale = 1.0
) -> Float[Array, "*B L"]:
    """Probability min(1, scale * sigmoid(logit)) of filling each position; 0 where not legal."""
    scale = jnp.asarray(scale, jnp.float32)[..., None]
    probs = jnp.minimum(1.0, scale * jax.nn.sigmoid(_legal_logits(logits, legal)))
    return jnp.where(legal, probs, 0.0)


def bernoulli_log_prob(
    logits: Float[Array, "*B L"],
    legal: Bool[Array, "*B L"],
    fill: Bool[Array, "*B L"],
    scale: Scale = 1.0,
) -> Float[Array, "*B"]:
    """Log-likelihood of `fill` under independent Bernoulli draws over the legal positions.

    Uses log-sigmoid where the reference clamps probabilities to [eps, 1 - eps]. A scaled
    probability of 1 makes the log-likelihood of leaving the position -inf (with zero gradient).
    """
    x = _legal_logits(logits, legal)
    scale = jnp.asarray(scale, jnp.float32)[..., None]
    log_fill = jnp.minimum(0.0, jax.nn.log_sigmoid(x) + jnp.log(scale))
    rest = 1.0 - scale * jax.nn.sigmoid(x)
    open_ = (rest > 0) & (scale != 1.0)
    log_leave = jnp.where(
        scale == 1.0,
        jax.nn.log_sigmoid(-x),
        jnp.where(open_, jnp.log(jnp.where(open_, rest, 1.0)), -jnp.inf),
    )
    return jnp.sum(jnp.where(legal, jnp.where(fill, log_fill, log_leave), 0.0), axis=-1)


def bernoulli_sample(
    logits: Float[Array, "*B L"],
    legal: Bool[Array, "*B L"],
    uniform: Float[Array, "*B L"],
    scale: Scale = 1.0,
) -> Bool[Array, "*B L"]:
    """Fills where uniform < probability; `uniform` lies in [0, 1)."""
    return (uniform < bernoulli_probs(logits, legal, scale)) & legal


def bernoulli_entropy(
    logits: Float[Array, "*B L"], legal: Bool[Array, "*B L"]
) -> Float[Array, "*B"]:
    """Exact entropy in nats, summed over the legal positions of a row."""
    x = _legal_logits(logits, legal)
    per_position = -(
        jax.nn.sigmoid(x) * jax.nn.log_sigmoid(x) + jax.nn.sigmoid(-x) * jax.nn.log_sigmoid(-x)
    )
    return jnp.sum(jnp.where(legal, per_position, 0.0), axis=-1)


def with_argmax_fallback(
    fill: Bool[Array, "*B L"], logits: Float[Array, "*B L"], legal: Bool[Array, "*B L"]
) -> Bool[Array, "*B L"]:
    """Fills the legal position with the largest logit in each row where nothing was drawn."""
    nothing = ~jnp.any(fill & legal, axis=-1, keepdims=True)
    return jnp.where(nothing, argmax_legal(logits, legal), fill)


def bernoulli_argmax_log_prob(
    logits: Float[Array, "*B L"],
    legal: Bool[Array, "*B L"],
    fill: Bool[Array, "*B L"],
    scale: Scale = 1.0,
) -> Float[Array, "*B"]:
    """Exact log-likelihood of `fill` under Bernoulli draws with arg-max fallback.

    The set {arg max} comes about in two ways, drawn or as the fallback for an empty draw, so its
    probability is the sum of both; the empty set has none (unless nothing is legal). The published
    code scores fallback actions with the plain `bernoulli_log_prob` instead.
    """
    drawn = bernoulli_log_prob(logits, legal, fill, scale)
    empty = bernoulli_log_prob(logits, legal, jnp.zeros_like(fill), scale)
    any_legal = jnp.any(legal, axis=-1)
    is_fallback = jnp.all((fill & legal) == argmax_legal(logits, legal), axis=-1) & any_legal
    is_empty = ~jnp.any(fill & legal, axis=-1) & any_legal
    # logaddexp(-inf, -inf) is -inf as it should be, but both branches of `where` need a gradient.
    finite = jnp.maximum(drawn, _NEGATIVE), jnp.maximum(empty, _NEGATIVE)
    log_prob = jnp.where(is_fallback, jnp.logaddexp(*finite), drawn)
    return jnp.where(is_empty, -jnp.inf, log_prob)


def dpls_log_prob(
    logits: Float[Array, "*B L"],
    legal: Bool[Array, "*B L"],
    rank: Int[Array, "*B L"],
    stop_logit: float,
) -> Float[Array, "*B"]:
    """Exact log-likelihood of an ordered action under dynamic Plackett-Luce sampling (DPLS).

    The first position comes from a softmax over the legal ones; then positions are drawn without
    replacement from the remaining legal ones and a STOP item, until STOP is drawn.

    Args:
        logits, legal: see the module.
        rank: 1-based order in which positions were drawn, 0 for those that were not. A row with a
            legal position must have drawn at least one.
        stop_logit: logit of STOP.
    """
    stop = jnp.full(logits.shape[:-1], stop_logit, jnp.float32)
    ordered, drawn, before = _remaining_log_sums(logits, legal, rank, stop)
    x = _legal_logits(logits, legal)
    everything = jax.nn.logsumexp(jnp.where(legal, x, _NEGATIVE), axis=-1)
    # The first draw competes with all legal positions, but not with STOP.
    first = jnp.arange(logits.shape[-1]) == 0
    before = jnp.where(first, everything[..., None], before)
    draws = jnp.sum(jnp.where(drawn, ordered - before, 0.0), axis=-1)
    undrawn = jnp.where(legal & (rank == 0), x, _NEGATIVE)
    left = jnp.logaddexp(jax.nn.logsumexp(undrawn, axis=-1), stop)
    return jnp.where(jnp.any(legal, axis=-1), draws + stop - left, 0.0)


def _remaining_log_sums(
    logits: Array, legal: Array, rank: Array, stop: Array
) -> tuple[Array, Array, Array]:
    """Logits in the order of the draw, which of them were drawn, and what each draw chose from.

    The last is the log-sum-exp over what was still there: the item, later and undrawn ones, STOP.
    """
    x = _legal_logits(logits, legal)
    drawn = (rank > 0) & legal
    # Stable sort: drawn items by rank, the others after them.
    order = jnp.argsort(jnp.where(drawn, rank, logits.shape[-1] + 1), axis=-1, stable=True)
    ordered = jnp.take_along_axis(x, order, axis=-1)
    ordered_drawn = jnp.take_along_axis(drawn, order, axis=-1)
    ordered_legal = jnp.take_along_axis(legal, order, axis=-1)
    items = jnp.concatenate(
        [jnp.where(ordered_legal, ordered, _NEGATIVE), stop[..., None]], axis=-1
    )
    sums = jax.lax.cumlogsumexp(items, axis=items.ndim - 1, reverse=True)
    return ordered, ordered_drawn, sums[..., :-1]


def dpls_sample(
    logits: Float[Array, "*B L"],
    legal: Bool[Array, "*B L"],
    first_choice: Int[Array, "*B"],
    gumbel: Float[Array, "*B L1"],
    stop_logit: float,
) -> tuple[Bool[Array, "*B L"], Int[Array, "*B L"]]:
    """Completes a DPLS draw by Gumbel ranking.

    Args:
        logits, legal: see the module.
        first_choice: position drawn first (`dpls_first_choice`); ignored in rows where nothing is
            legal.
        gumbel: standard Gumbel noise [*B, L + 1], the last entry for STOP.
        stop_logit: logit of STOP.

    Returns:
        (fill, rank): the drawn set, and the 1-based order of the draw (0 where not drawn). Every
        legal position whose noisy logit beats STOP's is drawn, in descending order.
    """
    length = logits.shape[-1]
    first = (jnp.arange(length) == first_choice[..., None]) & legal
    noisy = _legal_logits(logits, legal) + gumbel[..., :-1]
    stop = (stop_logit + gumbel[..., -1])[..., None]
    fill = first | (legal & (noisy > stop))
    rank = descending_ranks(jnp.where(first, jnp.inf, noisy), fill) + 1
    return fill, jnp.where(fill, rank, 0)


def dpls_first_choice(
    logits: Float[Array, "*B L"], legal: Bool[Array, "*B L"], gumbel: Float[Array, "*B L"]
) -> Int[Array, "*B"]:
    """Draws from the softmax over legal logits by Gumbel-max; -1 where nothing is legal."""
    noisy = jnp.where(legal, logits + gumbel, -jnp.inf)
    best = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(legal, axis=-1), best, -1)


def dpls_probs(
    logits: Float[Array, "*B L"], legal: Bool[Array, "*B L"], stop_logit: float = 0.0
) -> Float[Array, "*B L"]:
    """Probability that a dynamic Plackett-Luce draw fills each position; 0 where not legal.

    A position is the first choice with p = softmax(logits), or else comes before STOP in what
    remains. Of two items of a Plackett-Luce draw, which comes first does not depend on the others,
    so the latter has probability sigmoid(logit - stop_logit), whatever the first choice was.
    """
    x = _legal_logits(logits, legal)
    first = jax.nn.softmax(jnp.where(legal, x, _NEGATIVE), axis=-1)
    return jnp.where(legal, first + (1.0 - first) * jax.nn.sigmoid(x - stop_logit), 0.0)


def dpls_entropy(logits: Float[Array, "*B L"], legal: Bool[Array, "*B L"]) -> Float[Array, "*B"]:
    """Entropy in nats of the first choice; a lower bound of the whole draw's entropy.

    The entropy of the ordered draw has no closed form. By the chain rule it is that of the first
    choice plus a non-negative rest.
    """
    x = jnp.where(legal, _legal_logits(logits, legal), _NEGATIVE)
    log_p = jax.nn.log_softmax(x, axis=-1)
    terms = jnp.where(legal, jnp.exp(log_p) * log_p, 0.0)
    return -jnp.sum(terms, axis=-1)
