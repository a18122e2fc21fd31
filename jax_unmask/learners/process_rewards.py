"""From scores of the chunks of responses to rewards of tokens (arXiv 2509.06949)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def chunk_z_scores(
    scores: Float[np.ndarray, "B K"], present: Bool[np.ndarray, "B K"], group_size: int
) -> Float[np.ndarray, "B K"]:
    """Scores relative to those of the same chunk of the group's other responses.

    Args:
        scores: score of chunk k of each response.
        present: the response has that chunk; what stands elsewhere is ignored.
        group_size: responses per prompt, next to each other.

    Returns:
        (score - mean) / deviation over the group's responses that have the chunk; 0 where they do
        not differ, and where there is no chunk.
    """
    shape = (-1, group_size, scores.shape[1])
    values, there = scores.reshape(shape).astype(np.float32), present.reshape(shape)
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    mean = np.where(there, values, 0.0).sum(axis=1, keepdims=True) / count
    centred = np.where(there, values - mean, 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / count)
    scored = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-6)
    return scored.reshape(scores.shape)


def chunk_rewards(
    scores: Float[Array, "B K"],
    length: Int[Array, " B"],
    time: Int[Array, "B L"],
    trained: Bool[Array, "B L"],
    chunk_length: int,
) -> Float[Array, "B L"]:
    """Puts the score of each chunk on the tokens of the chunk's last step, 0 elsewhere.

    The score of a response's last chunk goes to the last step of the whole response, as the reward
    of the outcome does. A chunk without a trained token gives its score to nobody.

    Args:
        scores: scores of the chunks; chunk k covers tokens k * chunk_length and on.
        length: tokens of each response that are judged.
        time: step of each token, see `trace.merged_steps`.
        trained: the tokens that count.
        chunk_length: tokens per chunk (static).
    """
    positions = jnp.arange(time.shape[1])
    num_chunks = scores.shape[1]
    last_chunk = (jnp.maximum(length, 1) - 1) // chunk_length
    chunk = jnp.minimum(positions // chunk_length, num_chunks - 1)
    judged = trained & (positions < length[:, None])
    member = (chunk[None, :, None] == jnp.arange(num_chunks)) & judged[..., None]
    last_of_chunk = jnp.max(jnp.where(member, time[..., None], -1), axis=1)
    at_end = judged & (time == last_of_chunk[:, chunk])
    rewards = jnp.where(at_end & (chunk < last_chunk[:, None]), scores[:, chunk], 0.0)
    last = jnp.max(jnp.where(trained, time, -1), axis=1, keepdims=True)
    final = jnp.take_along_axis(scores, last_chunk[:, None], axis=1)
    return rewards + jnp.where(trained & (time == last), final, 0.0)
