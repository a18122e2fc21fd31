"""What an update of an unmasking policy adds up, and the metrics that it makes of that."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jax_unmask.learners.totals import Totals

Metrics = dict[str, Float[Array, ""]]


@struct.dataclass
class Sums(Totals):
    """What one pass over pairs adds up."""

    loss: Float[Array, ""]
    surprise: Float[Array, ""]
    legal: Float[Array, ""]
    clipped: Float[Array, ""]
    kl: Float[Array, ""]
    kl_pairs: Float[Array, ""]
    pairs: Float[Array, ""]

    def metrics(self, steps: Float[Array, ""] | float = 1.0) -> Metrics:
        """Averages over `steps` optimiser steps; see `PolicyLearner.update` for what they are."""
        return {
            "loss": self.loss / jnp.maximum(steps, 1.0),
            "entropy": self.surprise / jnp.maximum(self.legal, 1.0),
            "clip_fraction": self.clipped / jnp.maximum(self.pairs, 1.0),
            "approx_kl": self.kl / jnp.maximum(self.kl_pairs, 1.0),
            "ratio_max": self.ratio_max,
        }
