"""The training state of all learners."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

Params = Any


@struct.dataclass
class TrainState:
    """Parameters and everything needed to continue training exactly; one checkpoint item.

    Attributes:
        step: learner steps taken, also those that changed nothing. A step's randomness is
            `fold_in(key, step)`, so it does not depend on how often training was resumed.
        params: parameters being trained.
        opt_state: optimiser state.
        key: typed PRNG key of the run; never split, only folded.
        ema: exponential moving average of the parameters, or None.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    key: Array
    ema: Params | None = None

    def step_key(self) -> Array:
        """The key of the coming step."""
        return jax.random.fold_in(self.key, self.step)


def zero_step() -> Int[Array, ""]:
    """A step counter at zero. Strongly typed: a weak type would compile the first step twice."""
    return jnp.zeros((), jnp.int32)
