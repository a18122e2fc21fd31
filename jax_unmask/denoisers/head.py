"""Scores of each position: candidate, confidence, largest probabilities, entropy.

All are reductions over the vocabulary, computed a slice of it at a time: with 126k tokens, the
logits of a batch of canvases would be by far the largest array of a step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers import tpu_head
from jax_unmask.denoisers.sampling import PLAIN, Sampling, filtered
from jax_unmask.denoisers.sharded_table import TableShard, over_table
from jax_unmask.denoisers.sharding import look_up
from jax_unmask.denoisers.transformer import Denoiser, Params, output_table

Tree = TypeVar("Tree")


@struct.dataclass
class Scores:
    """The denoiser's predictions at each position, float32."""

    candidate: Int[Array, "B L"]  # The token that would be written.
    confidence: Float[Array, "B L"]  # The denoiser's probability of the candidate.
    top_probs: Float[Array, "B L K"]  # The largest probabilities, in descending order.
    entropy: Float[Array, "B L"] | None  # In nats; None if it was not asked for.
    of_tokens: Float[Array, "B L"] | None = None  # Probabilities of given tokens, if asked for.


def score_targets(
    denoiser: Denoiser,
    params: Params,
    hidden: Float[Array, "B L D"],
    scores: Scores,
    targets: Int[Array, "B L"],
) -> Scores:
    """Scores with given tokens `targets` as candidates; see `probability_of`."""
    confidence = probability_of(denoiser, params, hidden, scores, targets)
    return dataclasses.replace(scores, candidate=targets, confidence=confidence)


def probability_of(
    denoiser: Denoiser,
    params: Params,
    hidden: Float[Array, "B L D"],
    scores: Scores,
    tokens: Int[Array, "B L"],
) -> Float[Array, "B L"]:
    """The denoiser's probability of a token at each position.

    `scores` are those of `score_candidates` for `hidden`, whose confidences are the denoiser's own.
    """
    table = output_table(denoiser.config, params)

    def logit(tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
        rows = look_up(table, tokens.reshape(-1)).reshape(hidden.shape).astype(hidden.dtype)
        return jnp.sum(rows.astype(jnp.float32) * hidden.astype(jnp.float32), axis=-1)

    # Relative to the candidate: the sum over the vocabulary is known through its confidence.
    return scores.confidence * jnp.exp(logit(tokens) - logit(scores.candidate))


class _Partial(NamedTuple):
    """Reductions over the slices of the vocabulary so far."""

    top: Float[Array, "B L K"]  # The largest logits, descending; the first is the maximum.
    mass: Float[Array, "B L"]  # Sum of exp(logit - maximum).
    moment: Float[Array, "B L"]  # Sum of exp(logit - maximum) * (logit - maximum).
    best: Float[Array, "B L"]  # Largest (perturbed) logit of a token that may be a candidate.
    candidate: Int[Array, "B L"]  # That token.
    chosen: Float[Array, "B L"]  # Its logit without noise.


def score_candidates(
    denoiser: Denoiser,
    params: Params,
    hidden: Float[Array, "B L D"],
    keys: Array,
    *,
    top_k: int = 1,
    entropy: bool = False,
    temperature: float = 0.0,
    vocab_chunk: int | None = None,
    sampling: Sampling = PLAIN,
) -> Scores:
    """Scores each position's candidate token.

    At temperature 0 the candidate is the most probable token (the first of equals). Above 0 it is
    a Gumbel-max draw from softmax(logits / temperature); its confidence is its probability at
    temperature 1 and without noise, as in LLaDA's `generate` (arXiv 2502.09992).

    A position that is filled with the mask token has not been filled: published samplers then
    waste the step, or never end. So the mask token is not a candidate.
    Only the choice is restricted: confidence, top_probs and entropy are those of the denoiser's own
    distribution over the whole vocabulary. Wherever a published sampler's candidate is a real
    token, the results are therefore the same.

    Args:
        denoiser: gives the output projection.
        params: its parameters.
        hidden: last hidden states (`Denoiser.hidden`) of the positions to score.
        keys: typed PRNG keys [B]; a row's noise depends on its key alone. Unused at temperature 0.
        top_k: how many of the largest probabilities to return.
        entropy: whether to compute the entropy.
        temperature: denoiser temperature (static).
        vocab_chunk: vocabulary entries whose logits exist at one time; None for all. Draws stay the
            same, sums agree to rounding.
        sampling: filters of the draw. They need the logits of a position all at once, so the
            slices are of positions then (of the same size), and other noise is drawn.

    Raises:
        ValueError: top_k, temperature or vocab_chunk is out of range.
    """
    cfg = denoiser.config
    vocab = cfg.vocab_size
    chunk = vocab if vocab_chunk is None else vocab_chunk
    if not 1 <= top_k <= vocab:
        raise ValueError(f"top_k={top_k} must be between 1 and the vocabulary size {vocab}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be finite and not negative")
    if chunk < 1:
        raise ValueError(f"vocab_chunk={vocab_chunk} must be at least 1, or None for one slice")
    forbidden = cfg.mask_token_id
    if sampling.changes(temperature):
        draw = functools.partial(
            _draw,
            temperature=temperature,
            sampling=sampling,
            forbidden=forbidden,
            top_k=top_k,
            entropy=entropy,
        )
        width = max(chunk * hidden.shape[1] // vocab, 1)

        def score(shard: TableShard, hidden: Array, keys: Array) -> Scores:
            of_some = lambda hidden, keys: draw(shard.all_logits(hidden), keys)
            return by_position(of_some, hidden, keys, width)
    else:

        def score(shard: TableShard, hidden: Array, keys: Array) -> Scores:
            if shard.fsdp == 1 and tpu_head.takes(shard.table, hidden, top_k, temperature):
                reduced = _in_kernel(shard, hidden, top_k, entropy, forbidden)
            else:
                reduced = _reduce_shard(shard, hidden, keys, chunk, temperature, top_k, forbidden)
            return _finish(shard.over_all(reduced, functools.partial(_merge, top_k=top_k)), entropy)

    return over_table(score, output_table(cfg, params), hidden, keys)


def _reduce_shard(
    shard: TableShard,
    hidden: Float[Array, "B L D"],
    keys: Array,
    chunk: int,
    temperature: float,
    top_k: int,
    forbidden: int,
) -> _Partial:
    """The reduction of a shard of the vocabulary, `chunk` tokens at a time."""
    size = shard.size
    chunk = min(chunk, size)

    def reduce(first: Array | int, count: int) -> _Partial:
        ids, noise = shard.first + first + jnp.arange(count), None
        if temperature > 0:
            noise = temperature * gumbel_noise(keys, ids, hidden.shape[1])
        return _reduce(shard.logits(hidden, first, count), ids, noise, top_k, forbidden)

    def step(
        carry: tuple[_Partial, Int[Array, ""]], _: None
    ) -> tuple[tuple[_Partial, Int[Array, ""]], None]:
        # Carried, as the index of `transformer.forward`'s layers is.
        total, index = carry
        return (_merge(total, reduce(index * chunk, chunk), top_k), index + 1), None

    if chunk == size:
        return reduce(0, size)
    whole, rest = divmod(size, chunk)
    carry = (_nothing(hidden.shape[:2], top_k), jnp.zeros((), jnp.int32))
    (total, _), _ = jax.lax.scan(step, carry, None, length=whole)
    return _merge(total, reduce(whole * chunk, rest), top_k) if rest else total


def _in_kernel(
    shard: TableShard, hidden: Float[Array, "B L D"], top_k: int, entropy: bool, forbidden: int
) -> _Partial:
    """The reduction of a shard of the vocabulary in the TPU's kernel, at temperature 0."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    lanes = tpu_head.reduce(shard.table, flat, top_k, entropy, forbidden - shard.first)
    top = _top(jnp.concatenate(lanes.top, axis=-1), top_k)
    drop = lanes.top[0] - top[:, :1]
    scale = jnp.exp(drop)
    moment = jnp.zeros_like(lanes.mass) if lanes.moment is None else lanes.moment
    moment = (moment + lanes.mass * jnp.maximum(drop, jnp.finfo(drop.dtype).min)) * scale
    best, candidate, _ = _largest(lanes.best, lanes.candidate, None)
    reduced = _Partial(
        top=top,
        mass=(lanes.mass * scale).sum(axis=-1),
        moment=jnp.where(scale > 0, moment, 0.0).sum(axis=-1),
        best=best,
        candidate=shard.first + candidate,
        chosen=best,
    )
    return jax.tree.map(lambda x: x.reshape(*hidden.shape[:2], *x.shape[1:]), reduced)


def gumbel_noise(keys: Array, ids: Int[Array, " C"], length: int) -> Float[Array, "B L C"]:
    """Standard Gumbel noise of each row (typed PRNG keys [B]) for the tokens `ids`, L positions.

    The noise of a token depends on the row's key and the token's id, not on the slice it is in.
    """

    def of_token(key: Array, token: Array) -> Float[Array, " L"]:
        return jax.random.gumbel(jax.random.fold_in(key, token), (length,))

    return jax.vmap(jax.vmap(of_token, (None, 0), 1), (0, None))(keys, ids)


def by_position(
    function: Callable[[Array, Array], Tree], hidden: Float[Array, "B L D"], keys: Array, width: int
) -> Tree:
    """Results of a function for all positions, computed for W = `width` of every row at a time.

    `function` maps (hidden states [B, W, D], typed PRNG keys [B, W]) to arrays [B, W, ...], each
    position on its own. A position's key is its row's (typed PRNG keys [B]) with the position
    folded in.
    """
    batch, length = hidden.shape[:2]
    width = min(width, length)
    starts = jnp.arange(0, length, width)

    def some(start: Array) -> Tree:
        # The last slice is moved back to end with the canvas; what it repeats is the same again.
        first = jnp.minimum(start, length - width)
        positions = first + jnp.arange(width)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        sliced = jax.lax.dynamic_slice_in_dim(hidden, first, width, axis=1)
        return function(sliced, fold(keys, positions))

    slices = jax.lax.map(some, starts)
    at = jnp.minimum(starts, length - width)[:, None] + jnp.arange(width)

    def join(leaf: Array) -> Array:
        out = jnp.zeros((batch, length, *leaf.shape[3:]), leaf.dtype)
        return out.at[:, at].set(jnp.swapaxes(leaf, 0, 1))

    return jax.tree.map(join, slices)


def _draw(
    logits: Float[Array, "B W V"],
    keys: Array,
    *,
    temperature: float,
    sampling: Sampling,
    forbidden: int,
    top_k: int,
    entropy: bool,
) -> Scores:
    """Draws from filtered logits; `keys` [B, W] has one key per position."""
    tempered = logits / temperature if temperature > 0 else logits
    kept = filtered(tempered, sampling)
    is_forbidden = jnp.arange(logits.shape[-1]) == forbidden
    choices = jnp.where(is_forbidden, -jnp.inf, kept)
    # If the filter kept no other token, takes the most probable other one.
    allowed = jnp.where(is_forbidden, -jnp.inf, tempered)
    best = allowed.max(axis=-1, keepdims=True)
    nothing = jnp.isneginf(choices).all(axis=-1, keepdims=True)
    choices = jnp.where(nothing & (allowed == best), allowed, choices)
    if temperature > 0:
        gumbel = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))
        choices = choices + gumbel(keys)
    candidate = choices.argmax(axis=-1)
    shown = kept if sampling.filtered_confidence else logits
    whole = tempered if sampling.filtered_confidence else logits
    return scores_of(shown, whole, candidate, top_k=top_k, entropy=entropy)


def scores_of(
    logits: Float[Array, "B W V"],
    whole: Float[Array, "B W V"],
    candidate: Int[Array, "B W"],
    *,
    top_k: int,
    entropy: bool,
) -> Scores:
    """Scores of given candidates from all logits of a position.

    Args:
        logits: of the distribution, -inf for tokens that a filter left out.
        whole: the same without a filter.
        candidate: the token of each position.
        top_k: how many of the largest probabilities to return.
        entropy: whether to compute the entropy.
    """
    log_mass = jax.nn.logsumexp(logits, axis=-1)
    top = jax.lax.top_k(logits, top_k)[0]
    probs = jnp.exp(logits - log_mass[..., None])
    surprise = jnp.where(probs > 0, log_mass[..., None] - logits, 0.0)
    of_candidate = jnp.take_along_axis(whole, candidate[..., None], axis=-1)[..., 0]
    return Scores(
        candidate=candidate.astype(jnp.int32),
        # A token that had to do was not kept; its probability must not exceed 1 all the same.
        confidence=jnp.exp(jnp.minimum(of_candidate - log_mass, 0.0)),
        top_probs=jnp.exp(top - log_mass[..., None]),
        entropy=(probs * surprise).sum(axis=-1) if entropy else None,
    )


def _reduce(
    logits: Float[Array, "B L C"],
    ids: Int[Array, " C"],
    noise: Float[Array, "B L C"] | None,
    top_k: int,
    forbidden: int,
) -> _Partial:
    """Reduces one slice; logits of -inf stand for tokens that do not belong to it."""
    top = _top(logits, min(top_k, logits.shape[-1]))
    if missing := top_k - top.shape[-1]:
        top = jnp.pad(top, ((0, 0), (0, 0), (0, missing)), constant_values=-jnp.inf)
    shifted = logits - top[..., :1]
    weights = jnp.exp(shifted)
    perturbed = logits if noise is None else logits + noise
    perturbed = jnp.where(ids == forbidden, -jnp.inf, perturbed)
    best, candidate, chosen = _largest(perturbed, ids, None if noise is None else logits)
    return _Partial(
        top=top,
        mass=weights.sum(axis=-1),
        moment=jnp.where(weights > 0, weights * shifted, 0.0).sum(axis=-1),
        best=best,
        # NaN compares with nothing; it shows in the confidence.
        candidate=jnp.minimum(candidate, ids[-1]),
        chosen=chosen,
    )


def _top(logits: Float[Array, "*B C"], top_k: int) -> Float[Array, "*B K"]:
    """The largest logits, descending; of up to two in one reduction, where `top_k` would sort."""
    if top_k == 1:
        return logits.max(axis=-1, keepdims=True)
    if top_k == 2:
        return jnp.stack(_two_largest(logits), axis=-1)
    largest: Array = jax.lax.top_k(logits, top_k)[0]
    return largest


def _two_largest(values: Float[Array, "*B C"]) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """The largest value and the second one, which equals it where two are largest."""

    def larger(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        lesser = jnp.minimum(one[0], other[0])
        return jnp.maximum(one[0], other[0]), jnp.maximum(lesser, jnp.maximum(one[1], other[1]))

    nothing = np.asarray(-jnp.inf, values.dtype)
    operands = values, jnp.full_like(values, nothing)
    first, second = jax.lax.reduce(operands, (nothing, nothing), larger, (values.ndim - 1,))
    return first, second


def _largest(
    values: Float[Array, "*B C"], ids: Int[Array, "#*B C"], others: Float[Array, "*B C"] | None
) -> tuple[Float[Array, "*B"], Int[Array, "*B"], Float[Array, "*B"]]:
    """The largest value, its id (the first of equals), and what `others` (or values) has there.

    One reduction for all: where an arg max and its value are two, a compiler may take the first
    from numbers that it has rounded.
    """
    whole = jnp.broadcast_to(ids.astype(jnp.int32), values.shape)
    operands = (values, whole) if others is None else (values, whole, others)
    nothing = (-jnp.inf, np.int32(np.iinfo(np.int32).max), -jnp.inf)[: len(operands)]

    def larger(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
        is_first = (first[0] > second[0]) | ((first[0] == second[0]) & (first[1] < second[1]))
        return tuple(jnp.where(is_first, a, b) for a, b in zip(first, second, strict=True))

    initial = tuple(np.asarray(x, y.dtype) for x, y in zip(nothing, operands, strict=True))
    best, candidate, *rest = jax.lax.reduce(operands, initial, larger, (values.ndim - 1,))
    return best, candidate, rest[0] if rest else best


def _nothing(shape: tuple[int, ...], top_k: int) -> _Partial:
    """The reduction of no token; -inf would give NaN in `_merge`, the lowest number does not."""
    lowest = jnp.full(shape, jnp.finfo(jnp.float32).min)
    zero = jnp.zeros(shape)
    top = jnp.full((*shape, top_k), -jnp.inf).at[..., 0].set(lowest)
    return _Partial(top, zero, zero, lowest, jnp.zeros(shape, jnp.int32), lowest)


def _merge(first: _Partial, second: _Partial, top_k: int) -> _Partial:
    """The reduction of two slices of the vocabulary; of equal tokens the first slice's wins."""
    top = _top(jnp.concatenate([first.top, second.top], axis=-1), top_k)

    def rescaled(each: _Partial) -> tuple[Array, Array]:
        drop = each.top[..., 0] - top[..., 0]
        scale = jnp.exp(drop)
        # Where a slice weighs nothing, drop may be -inf and has to stay out of the product.
        moment = (each.moment + each.mass * jnp.maximum(drop, jnp.finfo(drop.dtype).min)) * scale
        return each.mass * scale, jnp.where(scale > 0, moment, 0.0)

    (mass_a, moment_a), (mass_b, moment_b) = rescaled(first), rescaled(second)
    better = second.best > first.best
    return _Partial(
        top=top,
        mass=mass_a + mass_b,
        moment=moment_a + moment_b,
        best=jnp.where(better, second.best, first.best),
        candidate=jnp.where(better, second.candidate, first.candidate),
        chosen=jnp.where(better, second.chosen, first.chosen),
    )


def _finish(reduced: _Partial, entropy: bool) -> Scores:
    largest = reduced.top[..., 0]
    log_mass = jnp.log(reduced.mass)
    return Scores(
        candidate=reduced.candidate,
        confidence=jnp.exp(reduced.chosen - largest - log_mass),
        top_probs=jnp.exp(reduced.top - (largest + log_mass)[..., None]),
        # H = log Z - E[logit], with both taken relative to the largest logit. Rounding can make
        # it negative by 1e-8 where one token has all the mass.
        entropy=jnp.maximum(log_mass - reduced.moment / reduced.mass, 0.0) if entropy else None,
    )
