"""Log-probabilities of chosen tokens, with logits at no other position."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.sharded_table import TableShard, over_table
from jax_unmask.denoisers.transformer import project
from jax_unmask.learners.engine import Chunk, over_chunks, split

Tree = TypeVar("Tree")


def token_log_prob(
    table: Float[Array, "V D"],
    hidden: Float[Array, "N D"],
    labels: Int[Array, " N"],
    wanted: Bool[Array, " N"],
    positions_per_chunk: int,
    temperature: float = 1.0,
) -> Float[Array, " N"]:
    """The first result of `score_tokens`."""
    return score_tokens(table, hidden, labels, wanted, positions_per_chunk, temperature)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def score_tokens(
    table: Float[Array, "V D"],
    hidden: Float[Array, "N D"],
    labels: Int[Array, " N"],
    wanted: Bool[Array, " N"],
    positions_per_chunk: int,
    temperature: float = 1.0,
) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
    """Log-softmax of the wanted positions' logits at their labels, and which are the largest.

    The wanted positions are packed together and go through the vocabulary projection a chunk at a
    time, in the backward pass too (the logits are computed again). Time follows the number of
    wanted positions, memory the size of a chunk.

    Args:
        table: output projection, one row per token.
        hidden: last hidden states.
        labels: the token whose log-probability is asked for.
        wanted: positions that are asked for.
        positions_per_chunk: positions whose logits are alive at once (static); 0 for all.
        temperature: the logits are divided by it (static).

    Returns:
        Float32 log-probabilities, differentiable in `table` and `hidden`, and whether no token is
        more probable; 0 and False at all positions that are not wanted.
    """
    static = (positions_per_chunk, temperature)
    return _forward(table, hidden, labels, wanted, *static)[0]


def _forward(
    table: Array,
    hidden: Array,
    labels: Array,
    wanted: Array,
    positions_per_chunk: int,
    temperature: float,
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    def of_shard(
        shard: TableShard, hidden: Array, labels: Array, wanted: Array
    ) -> tuple[Array, ...]:
        shard = shard.gathered(hidden.dtype)

        def body(out: tuple[Array, ...], at: Chunk) -> tuple[Array, ...]:
            logits = shard.logits(hidden[at.row], 0, shard.size) / temperature
            logit, total = shard.picked(logits, labels[at.row]), jax.nn.logsumexp(logits, axis=-1)
            return _put(out, (logit, total, logits.max(axis=-1)), at)

        zeros = jnp.zeros(wanted.shape, jnp.float32)
        cells = split(wanted[None])
        start: tuple[Array, ...] = (zeros,) * 3
        found = over_chunks(body, start, cells, cells.first, positions_per_chunk)
        # Over the shards of the vocabulary once for all positions, and not a chunk at a time.
        logit, total, largest = shard.sum(found[0]), found[1], shard.max(found[2])
        if shard.tensor > 1:
            top = shard.max(total)
            total = top + jnp.log(shard.sum(jnp.exp(total - top)))
        return jnp.where(wanted, logit - total, 0.0), wanted & (logit >= largest), total

    names = [("batch",)] * 3
    scores, is_best, total = over_table(of_shard, table, hidden, labels, wanted, names=names)
    return (scores, is_best), (table, hidden, labels, wanted, total)


def _backward(
    positions_per_chunk: int,
    temperature: float,
    saved: tuple[Array, ...],
    cotangents: tuple[Array, Array],
) -> tuple[Array, Array, None, None]:
    def of_shard(shard: TableShard, *rows: Array) -> tuple[Array, Array]:
        hidden, labels, wanted, total, cotangent = rows
        shard = shard.gathered(hidden.dtype)

        def log_prob(table: Array, hidden: Array, at: Chunk) -> Array:
            logits = project(table, hidden) / temperature
            normaliser = jax.nn.logsumexp(logits, axis=-1)
            if shard.tensor > 1:  # The total is that of all parts; its derivatives are these.
                normaliser = jnp.sum(jnp.exp(logits - total[at.row][:, None]), axis=-1)
            return shard.picked(logits, labels[at.row]) - normaliser

        def body(grads: tuple[Array, Array], at: Chunk) -> tuple[Array, Array]:
            of_table, of_hidden = grads
            _, transpose = jax.vjp(lambda t, h: log_prob(t, h, at), shard.table, hidden[at.row])
            new_table, new_hidden = transpose(jnp.where(at.valid, cotangent[at.row], 0.0))
            return of_table + new_table.astype(jnp.float32), _put(of_hidden, new_hidden, at)

        zeros = (jnp.zeros(shard.table.shape, jnp.float32), jnp.zeros_like(hidden))
        cells = split(wanted[None])
        of_table, of_hidden = over_chunks(body, zeros, cells, cells.first, positions_per_chunk)
        return shard.gradient_shard(of_table).astype(table.dtype), shard.sum(of_hidden)

    (table, *rows), cotangent = saved, cotangents[0]
    names = [("vocab", "embed"), ("batch",)]
    of_table, of_hidden = over_table(of_shard, table, *rows, cotangent, names=names)
    return of_table, of_hidden, None, None


score_tokens.defvjp(_forward, _backward)


def _put(out: Tree, new: Tree, at: Chunk) -> Tree:
    """Puts numbers of a chunk's positions into arrays [N, ...]; the scatter drops invalid ones."""
    size = jax.tree.leaves(out)[0].shape[0]
    place = jnp.where(at.valid, at.row, size)
    return jax.tree.map(lambda x, y: x.at[place].set(y, mode="drop"), out, new)
