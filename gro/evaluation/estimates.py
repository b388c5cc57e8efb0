"""A measured number and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

_RESAMPLES = 2000
"""Enough that the ends of an interval are the same to about a twentieth of its width, whatever the seed."""
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
    """How the interval was made: Wilson, normal or bootstrap; empty where there is none."""


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


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Σ above / Σ below over clusters, such as the sum of what was found in a prompt's samples, and their number.

    The samples of one prompt are no independent draws; the prompts are.  So whole clusters are drawn anew, with the
    same noise at every call, and the interval is where 95 % of the ratios lie (Efron 1979, the percentile method).

    >>> ratio([1.0, 3.0, 2.0], [4.0, 4.0, 4.0])
    Estimate(value=0.5, low=0.25, high=0.75, method='bootstrap')
    """
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators for {len(below)} denominators")
    kept = [(a, b) for a, b in zip(above, below, strict=True) if b > 0]
    if not kept:
        return Estimate(math.nan)
    above_C, below_C = np.array(kept, dtype=np.float64).T
    value = float(above_C.sum() / below_C.sum())
    if len(kept) < 2:
        return Estimate(value)
    drawn = np.random.default_rng(0)
    # In pieces, so that thousands of clusters do not fill the memory.
    found = [_resampled(drawn, above_C, below_C, count) for count in [100] * (_RESAMPLES // 100)]
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value), "bootstrap")


def _resampled(drawn: np.random.Generator, above_C: np.ndarray, below_C: np.ndarray, count: int) -> np.ndarray:
    index_RC = drawn.integers(len(above_C), size=(count, len(above_C)))
    return above_C[index_RC].sum(1) / below_C[index_RC].sum(1)
