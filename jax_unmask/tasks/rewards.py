"""Rewards that weigh a right answer against the denoiser forwards that it took.

From "Learning Unmasking Policies for Diffusion Language Models" (arXiv 2512.09106), section 4.
All functions take Python numbers, NumPy arrays or JAX arrays and give what NumPy or `jax.numpy`
makes of them; they broadcast, and have no state.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jax_unmask import notation
from jax_unmask.settings import SettingError, Settings, setting


def multiplicative(
    correct: Bool[Array, "*B"] | Num[Array, "*B"] | float,
    nfe: Int[Array, "*B"] | int,
    gen_length: int,
    alpha: float,
) -> Float[Array, "*B"]:
    """r ((L - min(n, L) + 1) / L)^alpha.

    A wrong answer earns 0 whatever it cost, so it never pays to answer faster than one can. The
    paper writes (1 - n/L)^alpha, its code has the 1 that keeps a right answer of L forwards above
    a wrong one; this is the code's form. alpha = 0 rewards correctness alone.

    Args:
        correct: score r of the answers.
        nfe: denoiser forwards n of each row, at least 1.
        gen_length: canvas length L.
        alpha: weight of compute, at least 0.

    >>> multiplicative(1.0, 17, 64, alpha=1.0), multiplicative(0.0, 1, 64, alpha=1.0)
    (np.float64(0.75), np.float64(0.0))
    """
    xp = _namespace(gen_length, correct, nfe)
    speed = (gen_length - xp.minimum(nfe, gen_length) + 1) / gen_length
    return xp.asarray(correct) * speed**alpha


def additive(
    correct: Bool[Array, "*B"] | Num[Array, "*B"] | float,
    nfe: Int[Array, "*B"] | int,
    gen_length: int,
    alpha: float,
) -> Float[Array, "*B"]:
    """r - alpha n / L.

    Wrong answers pay for their forwards too. Published for comparison: training with it collapses
    to filling everything at once.

    Args:
        correct: score r of the answers.
        nfe: denoiser forwards n of each row.
        gen_length: canvas length L.
        alpha: price of L forwards, at least 0.

    >>> additive(1.0, 16, 64, alpha=1.0), additive(0.0, 64, 64, alpha=3.0)
    (np.float64(0.75), np.float64(-3.0))
    """
    xp = _namespace(gen_length, correct, nfe)
    return xp.asarray(correct) - alpha * xp.asarray(nfe) / gen_length


REWARDS = notation.Names(
    "reward",
    {"multiplicative": "rewards.multiplicative", "additive": "rewards.additive"},
    package="jax_unmask.tasks",
)


@dataclasses.dataclass(frozen=True)
class RewardSettings(Settings):
    """The reward of an answer and its forwards."""

    kind: str = setting(
        "multiplicative",
        "multiplicative, additive, or the import path of a function of your own with their "
        "parameters: see tasks/rewards.py.",
    )
    alpha: float = setting(
        1.0,
        "Weight of forwards; 0 rewards right answers alone. Of no account where each prompt has "
        "its own (policy.network.alphas).",
        ge=0,
        le=1e4,
    )

    def check(self) -> None:
        try:
            REWARDS(self.kind)
        except notation.NotationError as error:
            raise SettingError("kind", self.kind, error.problem, "Correct it") from error

    def __call__(self, correct: Any, nfe: Any, gen_length: int, alpha: Any = None) -> Any:
        """Rewards of answers; see `multiplicative` and `additive`. By default with `alpha`."""
        alpha = self.alpha if alpha is None else alpha
        return REWARDS(self.kind)(correct, nfe, gen_length, alpha)


def _namespace(gen_length: int, *values: Any) -> Any:
    """`jax.numpy` if any value is a JAX array, else `numpy`; refuses an empty canvas."""
    if gen_length < 1:
        raise ValueError(f"gen_length={gen_length} must be at least 1")
    for value in values:
        if hasattr(value, "__array_namespace__") and not isinstance(value, np.ndarray | np.generic):
            return value.__array_namespace__()
    return np
