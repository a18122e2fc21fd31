"""From scores of chunks to rewards of tokens."""

import jax.numpy as jnp
import numpy as np

from jax_unmask.learners.advantages import chunk_rewards, chunk_z_scores


def test_z_scores_compare_the_same_chunk_within_a_group():
    scores = np.array([[1.0, 1.0, 9.0], [-1.0, 1.0, 5.0], [1.0, 3.0, 7.0], [1.0, 1.0, 0.0]])
    present = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]], bool)
    found = chunk_z_scores(scores, present, group_size=2)
    # Two groups of two: the first differs in chunk 0, the second in chunk 1; one has chunk 2.
    np.testing.assert_allclose(found, [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], atol=1e-6)


def test_each_chunk_pays_its_own_last_step_and_the_last_chunk_the_last_step_of_all():
    # Eight positions, chunks of three, seven of them judged: chunks 0, 1 and 2 (one token).
    time = jnp.array([[0, 2, 2, 1, 4, 3, 0, 5]])
    trained = jnp.array([[True, True, True, True, True, True, True, False]])
    scores = jnp.array([[10.0, 20.0, 30.0]])
    found = chunk_rewards(scores, jnp.array([7]), time, trained, chunk_length=3)
    # Chunk 0 ends with step 2 (two tokens). Chunk 1 ends with step 4, which is also the last step
    # of all that is trained, so it earns the last chunk's 30 too.
    np.testing.assert_allclose(found, [[0, 10, 10, 0, 50, 0, 0, 0]])


def test_chunks_that_nothing_is_trained_in_and_empty_responses():
    time = jnp.array([[0, 1, 2, 3], [0, 0, 0, 0]])
    trained = jnp.array([[True, False, False, True], [False] * 4])
    found = chunk_rewards(jnp.array([[5.0, 7.0], [3.0, 3.0]]), jnp.array([4, 0]), time, trained, 2)
    np.testing.assert_allclose(found, [[5, 0, 0, 7], [0, 0, 0, 0]])
