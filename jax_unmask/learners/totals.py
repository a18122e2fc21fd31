"""Numbers that passes over the parts of a batch add up."""

from __future__ import annotations

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jax_unmask.learners.parts import Parts


@struct.dataclass
class Totals:
    """Float32 scalars: of two parts of a batch each is the sum, `ratio_max` the larger one.

    Attributes:
        ratio_max: largest ratio of the probabilities of new and old parameters.
    """

    ratio_max: Float[Array, ""]

    @classmethod
    def zero(cls) -> Self:
        """Nothing added yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in dataclasses.fields(cls)))

    def __add__(self, other: Self) -> Self:
        total = jax.tree.map(jnp.add, self, other)
        return dataclasses.replace(total, ratio_max=jnp.maximum(self.ratio_max, other.ratio_max))

    def over(self, parts: Parts) -> Self:
        """What all parts of a batch add up to that is spread over devices."""
        return dataclasses.replace(parts.sum(self), ratio_max=parts.max(self.ratio_max))
