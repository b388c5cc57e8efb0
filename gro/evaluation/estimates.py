"""A measured number and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_Z = 1.959963984540054
"""97.5 % of the normal distribution lie below it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over held-out rows, with its 95 % confidence interval where the rows are independent draws.

    >>> proportion(8, 10)
    Estimate(value=0.8, low=0.490..., high=0.943..., method='Wilson')
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""
    """How the interval was made: Wilson or normal; empty where there is none."""


def proportion(successes: float, n: int) -> Estimate:
    """A share of n with Wilson's score interval (1927), which stays inside [0, 1] and is not empty at 0 and 1.

    `successes` may count halves, for ties: their spread is less than a coin's, so the interval is on the safe side.
    """
    if n == 0:
        return Estimate(math.nan)
    p, z2 = successes / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(p, min(low, p), max(high, p), "Wilson")  # at 0 and 1 a rounding may put p outside


def mean(values: Sequence[float]) -> Estimate:
    """A mean with mean ± 1.96 standard errors; of values that are all 0 or 1 it is a proportion."""
    if not values:
        return Estimate(math.nan)
    if all(v in (0.0, 1.0) for v in values):
        return proportion(sum(values), len(values))
    centre = fmean(values)
    if len(values) < 2:
        return Estimate(centre)
    half = _Z * stdev(values) / math.sqrt(len(values))
    return Estimate(centre, centre - half, centre + half, "normal")
