"""One metric of several runs as the lines of one panel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gro.runs.axes import STEP, along
from gro.runs.lines import Line
from gro.runs.seeds import Group, groups, mean_and_band
from gro.runs.series import Series
from gro.runs.smoothing import smooth

DEFAULT_SMOOTHING = 0.05
"""A twentieth of the curve."""


def grouped(runs: Sequence[Series], by_seed: bool) -> list[Group]:
    """The runs' groups by seed; or each run for itself."""
    return groups(runs) if by_seed else [Group(run.name, (i,)) for i, run in enumerate(runs)]


def overlay(
    runs: Sequence[Series], members: Sequence[Group], metric: str, smoothing: float, axis: str = STEP
) -> list[Line]:
    """A line for each group in which some run has the metric; of several runs their mean with its confidence band.

    `smoothing` is the share of the longest of the curves over which a value is averaged: 0, nothing is; the stretch of
    steps is the same for all of them, however long they are and however often they record.  Every run's curve is
    smoothed, and the band is that of the smoothed curves.  Where not all of a group have the metric, the label says so.
    Means are taken step by step and placed on the axis, which all runs have, afterwards.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"the smoothing is at least 0 and below 1, found {smoothing}")
    known = {i: run.metrics[metric] for i, run in enumerate(runs) if has(run, metric)}
    stretch = smoothing * max((len(steps) * _spacing(steps) for steps, _ in known.values()), default=0.0)
    lines = []
    for source, group in enumerate(members):
        curves = [known[i] for i in group.members if i in known]
        there = [runs[i] for i in group.members if i in known]
        label = group.label if len(curves) == len(group.members) else f"{group.label}, {len(curves)} of them"
        smoothed = [(steps, smooth(values, max(1.0, stretch / _spacing(steps)))) for steps, values in curves]
        if len(curves) > 1:
            steps, mean, low, high = mean_and_band(smoothed)
            lines.append(Line(label, source, along(steps, there, axis), mean, None, low, high))
        elif curves:
            (steps, values), (_, shown) = curves[0], smoothed[0]
            at = along(steps, there, axis)
            lines.append(Line(label, source, at, shown, values if stretch > _spacing(steps) else None))
    return lines


def has(run: Series, metric: str) -> bool:
    """Whether the run has a finite value of it."""
    return metric in run.metrics and bool(np.isfinite(run.metrics[metric][1]).any())


def _spacing(steps: np.ndarray) -> float:
    """Steps from one value to the next, on average; 1 for a single value."""
    return float(steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 1.0
