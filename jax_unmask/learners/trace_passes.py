"""Passes over the states of a batch of responses, in chunks of static size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sharding import keep
from jax_unmask.learners.pairs import Chunk, Pairs, take_chunk
from jax_unmask.learners.parts import Parts
from jax_unmask.learners.state import Params
from jax_unmask.learners.totals import Totals
from jax_unmask.runtime.mesh import constrain

Carry = TypeVar("Carry")


@struct.dataclass
class Sums(Totals):
    """What passes over states add up; a unit is what has a ratio: a token or a response.

    Attributes:
        loss: loss of each optimiser step.
        kl: estimates of the KL divergence to the old parameters, over units.
        reference_kl: the same to the reference parameters.
        clipped: units whose ratio left the clip range.
        units: how many units there were.
        surprise: -log p of the trained tokens.
        tokens: how many of these there were.
    """

    loss: Float[Array, ""]
    kl: Float[Array, ""]
    reference_kl: Float[Array, ""]
    clipped: Float[Array, ""]
    units: Float[Array, ""]
    surprise: Float[Array, ""]
    tokens: Float[Array, ""]


def split(
    wanted: Bool[Array, "N B"], key: Array, parts: int, whole_responses: bool
) -> Int[Array, "N B"]:
    """Deals the wanted states out at random to parts of equal size, one per optimiser step.

    Without that, the states of a response and the responses of a prompt would lie together, and
    the gradients of one optimiser step would be alike.

    Args:
        wanted: which states there are.
        key: typed PRNG key.
        parts: how many parts (static).
        whole_responses: keep all states of a response in one part.

    Returns:
        The part of each state, in 0 .. parts - 1 where it is wanted.
    """
    if parts == 1:
        return jnp.zeros(wanted.shape, jnp.int32)
    units = wanted.any(axis=0) if whole_responses else wanted.reshape(-1)
    score = jnp.where(units, jax.random.uniform(key, units.shape), jnp.inf)
    place = jnp.argsort(jnp.argsort(score))
    part = place * parts // jnp.maximum(jnp.sum(units), 1)
    return jnp.broadcast_to(part, wanted.shape) if whole_responses else part.reshape(wanted.shape)


def over_chunks(
    parts: Parts,
    body: Callable[[Carry, Chunk], Carry],
    start: Carry,
    pairs: Pairs,
    chunk_size: int,
    rows: int,
) -> Carry:
    """Applies `body` to one chunk of (state, response) pairs after the other.

    Args:
        parts: the parts that chunks are cut into; what they add up to is their caller's.
        body: carry and chunk to the next carry.
        start: the first carry.
        pairs: the pairs.
        chunk_size: pairs per chunk, of all parts together (static).
        rows: number of responses B (static).
    """
    size = -(-min(chunk_size, pairs.order.shape[0]) // parts.count)

    def step(carry: tuple[Array, Carry]) -> tuple[Array, Carry]:
        begin, inner = carry
        # All parts take the same number of chunks, the last of which may be empty for some.
        at = take_chunk(pairs, begin + parts.index * size, pairs.count, size, rows)
        return begin + parts.count * size, body(inner, at)

    first = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0] < pairs.count, step, (first, start))[1]


def accumulate(
    parts: Parts,
    loss: Callable[[Params, Chunk], tuple[Array, Sums]],
    params: Params,
    pairs: Pairs,
    chunk_size: int,
    rows: int,
) -> tuple[Params, Sums]:
    """Gradient of the sum of the chunks' losses, added up in float32, and their sums.

    Args:
        parts: the parts that chunks are cut into.
        loss: parameters and chunk to the chunk's loss and sums.
        params: where to differentiate.
        pairs: the pairs to go over.
        chunk_size: pairs whose activations are alive at once (static).
        rows: number of responses B (static).
    """
    gradient = jax.grad(loss, has_aux=True)

    def body(carry: tuple[Params, Sums], at: Chunk) -> tuple[Params, Sums]:
        grads, sums = carry
        new_grads, new_sums = gradient(params, at)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, new_grads), sums + new_sums

    zeros = keep(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params))
    grads, sums = over_chunks(parts, body, (zeros, Sums.zero()), pairs, chunk_size, rows)
    # Once, behind the loop: what the parts add up on the way is their own.
    grads, sums = parts.sum(grads), sums.over(parts)
    return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params), sums


def gather_slots(
    parts: Parts,
    scores: Callable[[Chunk], tuple[Array, Array, Array]],
    shape: tuple[int, int, int],
    pairs: Pairs,
    chunk_size: int,
) -> Float[Array, "slots B L"]:
    """Collects per-token numbers of all states; states of one slot concern different tokens.

    Args:
        parts: the parts that chunks are cut into.
        scores: chunk to its numbers [C, L] (0 where they do not count), slots [C] and tokens that
            count [C, L].
        shape: (slots, B, L).
        pairs: the pairs to go over.
        chunk_size: pairs per chunk (static).
    """

    def body(out: Array, at: Chunk) -> Array:
        values, slot, counts = scores(at)
        # Whole on every device: others may have the tokens in their next chunk.
        values = constrain(jnp.where(counts & at.valid[:, None], values, 0.0))
        return out.at[slot, at.row].add(values)

    zeros = jnp.zeros(shape, jnp.float32)
    return parts.sum(over_chunks(parts, body, zeros, pairs, chunk_size, shape[1]))


def optimise(
    gradient: Callable[[Params, Array, Pairs], tuple[Params, Sums]],
    parts: Callable[[Array], list[Pairs]],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    passes: int,
) -> tuple[Params, Any, Sums, Array, Array]:
    """All optimiser steps of one batch.

    Args:
        gradient: parameters, index of the pass and pairs to the gradient and sums of one step.
        parts: index of the pass to the pairs of each of its steps.
        optimizer: an optax transformation.
        params: parameters to start from.
        opt_state: state of the optimiser.
        passes: passes over the batch (static).

    Returns:
        New parameters and state of the optimiser, the sums, the sum of the gradients' norms, and
        the number of steps taken. Parts without any pair take none.
    """

    def one_pass(carry: Any, index: Array) -> tuple[Any, None]:
        pairs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts(index))

        def step(carry: Any, pairs: Pairs) -> tuple[Any, None]:
            def apply(carry: Any) -> Any:
                params, opt_state, sums, norm, steps = carry
                grads, new = gradient(params, index, pairs)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                params = optax.apply_updates(params, updates)
                return params, opt_state, sums + new, norm + optax.tree.norm(grads), steps + 1.0

            return jax.lax.cond(pairs.count > 0, apply, lambda c: c, carry), None

        return jax.lax.scan(step, carry, pairs)

    zero = jnp.zeros((), jnp.float32)
    start = (params, opt_state, Sums.zero(), zero, zero)
    return jax.lax.scan(one_pass, start, jnp.arange(passes))[0]
