"""Log-probabilities of chosen tokens, with logits at no other position."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.transformer import project


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_log_prob(
    table: Float[Array, "V D"],
    hidden: Float[Array, "N D"],
    labels: Int[Array, " N"],
    wanted: Bool[Array, " N"],
    positions_per_chunk: int,
    temperature: float = 1.0,
) -> Float[Array, " N"]:
    """Log-softmax of the wanted positions' logits at their labels; 0 at all other positions.

    The wanted positions are packed together and go through the vocabulary projection a chunk at a
    time, in the backward pass too (the logits are computed again). Time follows the number of
    wanted positions, memory the size of a chunk.

    Args:
        table: output projection, one row per token.
        hidden: last hidden states.
        labels: the token whose log-probability is asked for.
        wanted: positions that are asked for.
        positions_per_chunk: positions whose logits are alive at once (static).
        temperature: the logits are divided by it (static).

    Returns:
        Float32 log-probabilities, differentiable in `table` and `hidden`.
    """
    size = min(positions_per_chunk, wanted.shape[0])
    order, count = _pack(wanted)

    def body(start: Array, out: Array) -> Array:
        place, target = _chunk(order, count, start * size, size)
        scores = _log_prob(table, hidden[place], labels[place], temperature)
        return out.at[target].set(scores, mode="drop")

    zeros = jnp.zeros(wanted.shape, jnp.float32)
    return jax.lax.fori_loop(0, (count + size - 1) // size, body, zeros)


def _pack(wanted: Bool[Array, " N"]) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    return jnp.argsort(~wanted, stable=True), jnp.sum(wanted, dtype=jnp.int32)


def _chunk(order: Array, count: Array, start: Array, size: int) -> tuple[Array, Array]:
    """Positions of a chunk, and where their results go: out of bounds if they do not count."""
    place = start + jnp.arange(size)
    index = order[jnp.minimum(place, jnp.maximum(count - 1, 0))]
    return index, jnp.where(place < count, index, order.shape[0])


def _log_prob(
    table: Float[Array, "V D"],
    hidden: Float[Array, "C D"],
    labels: Int[Array, " C"],
    temperature: float,
) -> Float[Array, " C"]:
    logits = project(table, hidden) / temperature
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _forward(
    table: Array,
    hidden: Array,
    labels: Array,
    wanted: Array,
    positions_per_chunk: int,
    temperature: float,
) -> tuple[Array, tuple[Array, ...]]:
    out = token_log_prob(table, hidden, labels, wanted, positions_per_chunk, temperature)
    return out, (table, hidden, labels, wanted)


def _backward(
    positions_per_chunk: int, temperature: float, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, None, None]:
    table, hidden, labels, wanted = saved
    size = min(positions_per_chunk, wanted.shape[0])
    order, count = _pack(wanted)

    def body(start: Array, grads: tuple[Array, Array]) -> tuple[Array, Array]:
        of_table, of_hidden = grads
        place, target = _chunk(order, count, start * size, size)
        chosen = labels[place]
        _, pull = jax.vjp(lambda t, h: _log_prob(t, h, chosen, temperature), table, hidden[place])
        weight = jnp.where(target < wanted.shape[0], cotangent[place], 0.0)
        new_table, new_hidden = pull(weight)
        return (
            of_table + new_table.astype(jnp.float32),
            of_hidden.at[target].set(new_hidden, mode="drop"),
        )

    zeros = (jnp.zeros(table.shape, jnp.float32), jnp.zeros_like(hidden))
    of_table, of_hidden = jax.lax.fori_loop(0, (count + size - 1) // size, body, zeros)
    return of_table.astype(table.dtype), of_hidden, None, None


token_log_prob.defvjp(_forward, _backward)
