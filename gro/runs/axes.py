"""Over what curves are drawn: steps, tokens or hours of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gro.runs.series import Series

AXES = ("step", "tokens", "hours")
"""tokens: of prompts and completions, as far as they were learnt from.  hours: the time that steps took, with what was
sampled and scored for them; neither evaluation, nor waiting for people, nor what lies between two sessions of a run."""
STEP, TOKENS, HOURS = AXES
_METRICS = {TOKENS: "num_tokens", HOURS: "step_time"}


def has_axis(run: Series, axis: str) -> bool:
    """Whether the run records how far along it its steps were."""
    found = run.metrics.get(_METRICS.get(axis, ""))
    return axis == STEP or (found is not None and bool(np.isfinite(found[1]).any()))


def places(steps: Sequence[int] | np.ndarray, run: Series, axis: str) -> np.ndarray:
    """Where these steps of a run that has the axis lie on it; later ones than it has recorded lie at its end."""
    at = np.asarray(steps, np.float64)
    return at if axis == STEP else np.interp(at, *_known(run, axis))


def along(steps: np.ndarray, runs: Sequence[Series], axis: str) -> np.ndarray:
    """Where these steps lie on the axis; of several runs, which all have it, at their mean.

    From the end of a run on, the mean moves as those do that go on: so it never goes back.
    """
    if axis == STEP:
        return steps
    each = np.stack([np.interp(steps, *_known(run, axis), right=np.nan) for run in runs])
    moves = np.diff(each, axis=1, prepend=0.0)
    there = np.isfinite(moves)
    moved = np.where(there, moves, 0.0).sum(0) / np.maximum(there.sum(0), 1)
    return moved.cumsum()


def without_axis(runs: Sequence[Series], axis: str) -> list[str]:
    """The names of those that record how far they were on other axes only."""
    return [run.name for run in runs if not has_axis(run, axis)]


def count(value: float) -> str:
    """A number of tokens.

    >>> count(12_500_000)
    '12.5M'
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _known(run: Series, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and how far the run was after each; before the first, at the beginning."""
    steps, values = run.metrics[_METRICS[axis]]
    there = np.isfinite(values)
    steps, values = steps[there], values[there]
    far = values.cumsum() / 3600 if axis == HOURS else values
    return (steps, far) if steps[0] == 0 else (np.append(0, steps), np.append(0.0, far))
