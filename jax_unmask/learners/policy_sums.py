"""What an update of an unmasking policy adds up, and the metrics that it makes of that."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

Metrics = dict[str, Float[Array, ""]]


@struct.dataclass
class Sums:
    """What one pass over pairs adds up."""

    loss: Float[Array, ""]
    surprise: Float[Array, ""]
    legal: Float[Array, ""]
    clipped: Float[Array, ""]
    kl: Float[Array, ""]
    kl_pairs: Float[Array, ""]
    pairs: Float[Array, ""]
    ratio_max: Float[Array, ""]

    @classmethod
    def zero(cls) -> Sums:
        """Nothing added yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in dataclasses.fields(cls)))

    def __add__(self, other: Sums) -> Sums:
        total = jax.tree.map(jnp.add, self, other)
        return dataclasses.replace(total, ratio_max=jnp.maximum(self.ratio_max, other.ratio_max))

    def metrics(self, steps: Float[Array, ""] | float = 1.0) -> Metrics:
        """Averages over `steps` optimiser steps; see `PolicyLearner.update` for what they are."""
        return {
            "loss": self.loss / jnp.maximum(steps, 1.0),
            "entropy": self.surprise / jnp.maximum(self.legal, 1.0),
            "clip_fraction": self.clipped / jnp.maximum(self.pairs, 1.0),
            "approx_kl": self.kl / jnp.maximum(self.kl_pairs, 1.0),
            "ratio_max": self.ratio_max,
        }
