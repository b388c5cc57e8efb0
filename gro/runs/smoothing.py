"""Curves made easier to see: noise averaged away, and no more points than a picture can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_POINTS = 800
"""Of a drawn line: about one to the pixel."""


def smooth(values: Sequence[float] | np.ndarray, span: float) -> np.ndarray:
    """A moving average over about `span` values that looks both ways, so that it does not lag.

    Equals Σ_j r^|i−j| x_j / Σ_j r^|i−j| over the finite x_j, with r = 1 − 2/(span + 1): the weights of an exponential
    average of that span, in both directions.  What is not finite is left out; NaN where nothing is finite.
    """
    assert span >= 1, span
    array = np.asarray(values, dtype=np.float64)
    there = np.isfinite(array)
    decay = 1.0 - 2.0 / (span + 1.0)
    total, weight = (_both_ways(x, decay) for x in (np.where(there, array, 0.0), there.astype(np.float64)))
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0.0)


def _both_ways(x: np.ndarray, decay: float) -> np.ndarray:
    """Σ_j decay^|i−j| x_j."""
    return _behind(x, decay) + _behind(x[::-1], decay)[::-1] - x


def _behind(x: np.ndarray, decay: float) -> np.ndarray:
    """Σ_{j≤i} decay^(i−j) x_j, in log₂ n passes over the array, each of which doubles how far back the sums reach."""
    total, reach = x.copy(), 1
    while reach < len(x) and (factor := decay**reach) > 0.0:
        total[reach:] += factor * total[:-reach]
        reach *= 2
    return total


def thin_places(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Places of at most `most` values that look like all: of each stretch the lowest and the highest, and the two ends.

    A stretch without a finite value keeps its first place, so that a gap stays a gap.
    """
    size = len(values)
    if size <= most:
        return np.arange(size)
    starts = np.linspace(0, size, max(1, (most - 2) // 2), endpoint=False).astype(np.int64)
    width = int(np.diff(starts, append=size).max())
    places = np.minimum(
        starts[:, None] + np.arange(width), np.append(starts[1:], size)[:, None] - 1
    )  # [stretch, width]
    found = values[places]
    there = np.isfinite(found)
    rows = np.arange(len(starts))
    lowest = places[rows, np.where(there, found, np.inf).argmin(1)]
    highest = places[rows, np.where(there, found, -np.inf).argmax(1)]
    empty = ~there.any(1)
    lowest[empty] = highest[empty] = starts[empty]
    return np.unique(np.concatenate([[0, size - 1], lowest, highest]))
