"""The streams of random numbers of a run, by name: one root key, from which all others follow.

    root = streams.root(config.seed)
    root
    |- "init", "numbers", "adapters"        what training starts from
    |- "training" - step                    one key per step of training
    |                |- "rollout" - round - row       sampling (rows: see `rollout.row_keys`)
    |                |- "experts" - row
    |                |- "alphas"                     what the policy is told
    |                |- "minibatches" - pass
    |                |- "states" - pass
    |                `- "masking"
    |- "policy" - step                      of a policy beside its denoiser, as "training"
    |- "sampling" - row                     evaluation
    |- "turn" - number - row                answers; turns of a conversation
    `- "likelihood"                         evaluation of likelihoods

Keys are folded, never split or carried, so a stream depends on nothing that came before it.
"""

from __future__ import annotations

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
