"""What a page or a file draws: panels of lines, with their numbers ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gro.runs.smoothing import MOST_POINTS, thin_places

FRONTIER = "frontier"
"""The key of the panel that is not over time: its lines are paths."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One line of a panel; P points."""

    label: str
    """What tells it apart inside the panel: `mean`, `runs/a`, `grpo (3 seeds)`."""
    source: int
    """Index of the run, or of the group of runs: its colour.  -1: of no single run; or there is one run only."""
    steps: np.ndarray
    """int64 [P], ascending; over tokens or hours float64; on the frontier float64, the KL, in order of the steps."""
    values: np.ndarray
    """float64 [P], smoothed; NaN where there is nothing."""
    raw: np.ndarray | None = None
    """float64 [P], before smoothing.  None: nothing was smoothed, or it is a mean of several runs."""
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    """float64 [P], confidence band; NaN where there is none."""

    def thinned(self, most: int = MOST_POINTS) -> Line:
        """At most that many points that look the same."""
        shape = self.values if self.raw is None else self.raw
        if len(shape) <= most:
            return self
        at = thin_places(shape, most)
        arrays = (None if a is None else a[at] for a in (self.steps, self.values, self.raw, self.low, self.high))
        return Line(self.label, self.source, *arrays)  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """For JSON, thinned; null where a number is not finite."""
        line = self.thinned()
        arrays = {name: _numbers(getattr(line, name)) for name in ("steps", "values", "raw", "low", "high")}
        return {"label": line.label, "source": line.source, **arrays}


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One picture."""

    key: str
    """The same for the same quantity of any runs: `reward`, `kl`, `frontier`, `metric:grad_norm`."""
    title: str
    x: str
    """What the horizontal axis is: one of `gro.runs.axes.AXES`, or the frontier's."""
    lines: tuple[Line, ...]
    last: str = ""
    """Of one run: the last recorded value of the first line, as text."""
    metric: str = ""
    """Of several runs: the one metric that is drawn."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        lines = [line.plain() for line in self.lines]
        words = {name: getattr(self, name) for name in ("key", "title", "x", "last", "metric")}
        return words | {"lines": lines}


def _numbers(values: np.ndarray | None) -> list[float | None] | None:
    if values is None:
        return None
    return [
        value if finite else None for value, finite in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)
    ]
