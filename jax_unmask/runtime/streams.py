"""The streams of random numbers of a run, by name: one root key, from which all others follow.

    root = streams.root(config.seed)
    root
    |- "init", "numbers", "adapters"        what training starts from
    |- "training" - step                    one key per step of training
    |                |- "rollout" - round - row       sampling (rows: see `rollout.row_keys`)
    |                |- "experts" - row
    |                |- "alphas"                     what the policy is told
    |                |- "minibatches" - pass
    |                |- "environment" - number     of several: with streams as a step
    |                |- "states" - pass
    |                `- "masking"
    |- "policy" - step                      of a policy beside its denoiser, as "training"
    |- "sampling" - row                     evaluation
    |- "turn" - number - row                answers; turns of a conversation
    `- "likelihood"                         evaluation of likelihoods

Keys of streams are folded and never carried, so a stream depends on nothing that came before it.
Below them, keys are folded by counts, or split into a fixed number:

    learners.engine         fold of the step: the key of a training step
    learners.policy_grpo    fold of the environment's number, after the first: its minibatches
    learners.sft            split: the rows' draws (fold of the row), the offset that they share
    learners.surrogates     folds of the row and of the state's index
    rollout.loop            fold of the row (`row_keys`)
    rollout.forwards        fold of the step, split: the draw of tokens, the policy's draw
    rollout.canvases        fold of 3 n, 3 n + 1, 3 n + 2: tokens, the policy's draw, a new canvas
    policies.learned        the key itself: positions to fill; fold of 1: those to take back
    denoisers.head          folds of the position or of the token's id
    denoisers.adapters      fold of the matrix's number
    evaluation.likelihood   split by batch of masks; then their sizes, their places
"""

from typing import Literal, get_args

import jax
from jaxtyping import Array, Int

StreamName = Literal[
    "init",
    "numbers",
    "adapters",
    "training",
    "rollout",
    "experts",
    "minibatches",
    "states",
    "masking",
    "sampling",
    "turn",
    "likelihood",
    "alphas",
    "policy",
    "environment",
]
"""All streams. Append new ones: the order makes the keys."""

_NUMBER = {name: number for number, name in enumerate(get_args(StreamName))}


def root(seed: int) -> Array:
    """The root key of a run."""
    return jax.random.key(seed)


def training_key(seed: int) -> Array:
    """The key of a run's training state; each step folds its number into it."""
    return stream(root(seed), "training")


def stream(key: Array, name: StreamName, *indices: int | Int[Array, ""]) -> Array:
    """The key of a stream below another key.

    Args:
        key: typed PRNG key of what the stream belongs to, see the module.
        name: the stream.
        *indices: what is counted within it.

    >>> a, b = stream(root(0), "init"), stream(root(0), "adapters")
    >>> bool(jax.numpy.all(jax.random.key_data(a) == jax.random.key_data(b)))
    False
    """
    key = jax.random.fold_in(key, _NUMBER[name])
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key
