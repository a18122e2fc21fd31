"""Confidence intervals for tables and plots."""

import math

Z95 = 1.959964
"""Half-width of a 95 % interval of the normal distribution, in standard errors."""


def around(mean: float, se: float) -> tuple[float, float]:
    """The normal 95 % interval of a mean; the mean alone where the standard error is unknown."""
    if not math.isfinite(se):
        return mean, mean
    return mean - Z95 * se, mean + Z95 * se


def of_proportion(p: float, se: float, n: int) -> tuple[float, float]:
    """A 95 % interval of a proportion that stays within [0, 1] and is never empty.

    Wilson's score interval at the effective sample size p (1 - p) / se^2 (Franco et al. 2019,
    "Comparative study of confidence intervals for proportions in complex sample surveys"): for
    independent right/wrong scores that is n, and Wilson's own interval. Where all scores are equal,
    the standard error is zero and only the sample size n remains.

    Args:
        p: the proportion.
        se: its standard error, over problems and whatever else was drawn.
        n: number of problems.
    """
    spread = p * (1 - p)
    size = float(n)
    if spread > 0 and math.isfinite(se) and se > 0:
        size = spread / se**2
    z2 = Z95**2
    centre = (p + z2 / (2 * size)) / (1 + z2 / size)
    half = Z95 / (1 + z2 / size) * math.sqrt(spread / size + z2 / (4 * size**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)
