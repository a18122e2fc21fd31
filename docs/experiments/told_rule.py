"""A hand-written rule that is told alpha, as a teacher of policies for long canvases.

With this directory on PYTHONPATH it is `told_rule.FrontierTold` in every notation.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from jax_unmask.policies.base import Observation, Params, number
from jax_unmask.policies.heuristics import Rule, column


@dataclasses.dataclass(frozen=True)
class FrontierTold(Rule):
    """Fills the leftmost position, and near it all that are confident enough.

    Confident enough is a doubt 1 - p of at most 0.02 alpha^0.6, near are the first 20 legal
    positions, or 20 (alpha / 20)^0.85 above alpha 20.
    """

    alphas: ClassVar[tuple[float, float]] = (0.01, 1000.0)

    def params(self, alpha: ArrayLike = 1.0) -> Params:
        """Settings.

        Args:
            alpha: weight of forwards in the reward.
        """
        return {"alpha": number("alpha", alpha, gt=0)}

    def fill(self, params: Params, obs: Observation, keys: Array) -> Bool[Array, "*B L"]:
        del keys
        alpha, place = column(params["alpha"]), jnp.cumsum(obs.legal, axis=-1)
        reach = 20 * jnp.maximum(1, alpha / 20) ** 0.85
        fill = (1 - obs.confidence <= 0.02 * alpha**0.6) & (place <= reach)
        return obs.legal & (fill | (place == 1))
