"""From the metrics of runs to the panels that show them: the same for a report, a comparison and the live page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from gro.runs.axes import AXES, STEP, has_axis
from gro.runs.differences import Row, differences
from gro.runs.frontier import frontier
from gro.runs.lines import Line, Panel
from gro.runs.overlay import DEFAULT_SMOOTHING, grouped, has, overlay
from gro.runs.panel_table import PANELS
from gro.runs.seeds import Group, groups
from gro.runs.series import Series
from gro.runs.terminal import number, printable

__all__ = [
    "AXES",
    "DEFAULT_SMOOTHING",
    "Group",
    "Line",
    "Panel",
    "Row",
    "Series",
    "differences",
    "frontier",
    "groups",
    "panels",
]

_HELD_OUT = "eval"  # how names of metrics begin that are measured on held-out data


def panels(
    runs: Sequence[Series],
    *,
    smooth: float = DEFAULT_SMOOTHING,
    by_seed: bool = True,
    every: bool = False,
    x: str = STEP,
) -> list[Panel]:
    """What is to be drawn of these runs.

    Of one run a panel has all metrics that belong together.  Of several it has one, so that colours mean runs: the one
    that most of them have; and what is held out has a panel of its own.  Runs that differ only in their seed are one
    line with a band, unless `by_seed` is false.
    `smooth`: the share of the curve over which values are averaged, from 0, as recorded, to below 1.
    `every`: with a panel for each metric that has none.
    `x`: over what, one of `AXES`; curves of a run that does not record it are left out.
    """
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth is at least 0 and below 1, found {smooth}")
    if x not in AXES:
        raise ValueError(f"x is one of {', '.join(AXES)}, found {x!r}")
    placed = [run if has_axis(run, x) else replace(run, metrics={}) for run in runs]
    made = list(
        _of_one(placed[0], smooth, every, x) if len(runs) == 1 else _of_several(placed, smooth, by_seed, every, x)
    )
    against = frontier(runs, smooth, by_seed=by_seed)
    if against is not None:
        place = next((i + 1 for i, panel in enumerate(made) if panel.key == "kl"), len(made))
        made.insert(place, against)
    return made


def _of_one(run: Series, smooth: float, every: bool, x: str) -> Iterator[Panel]:
    members, there = grouped([run], False), _drawable([run])
    rows = list(_rows(there))
    drawn = {name for _, _, names in rows for name in names}
    rows += [(*_alone(name), [name]) for name in there if every and name not in drawn]
    for key, title, names in rows:
        labels = _without_common_start([printable(name) for name in names])
        found = [line for name in names for line in overlay([run], members, name, smooth, x)]
        lines = tuple(replace(line, label=label, source=-1) for line, label in zip(found, labels, strict=True))
        values = run.metrics[names[0]][1]
        yield Panel(key, title, x, lines, number(float(values[np.isfinite(values)][-1])))


def _of_several(runs: Sequence[Series], smooth: float, by_seed: bool, every: bool, x: str) -> Iterator[Panel]:
    members, there = grouped(runs, by_seed), _drawable(runs)
    chosen: dict[str, tuple[str, str]] = {}  # metric → key and title
    for key, title, names in _rows(there):
        held_out = [name for name in names if name.startswith(_HELD_OUT)]
        rest = [name for name in names if name not in held_out]
        if rest:
            chosen[max(rest, key=there.__getitem__)] = (key, title)  # of equals the first
        if held_out:
            told = title.startswith("Held-out")
            key, title = (key, title) if told else (f"{key}:held_out", f"{title}, held out")
            chosen[max(held_out, key=there.__getitem__)] = (key, title)
    if every:
        chosen |= {name: _alone(name) for name in there if name not in chosen}
    for metric, (key, title) in chosen.items():
        yield Panel(key, title, x, tuple(overlay(runs, members, metric, smooth, x)), metric=printable(metric))


def _drawable(runs: Sequence[Series]) -> dict[str, int]:
    """The metrics with a finite value, and how many of the runs have one."""
    return Counter(name for run in runs for name in run.metrics if has(run, name))


def _rows(there: Mapping[str, int]) -> Iterator[tuple[str, str, list[str]]]:
    """(key, title, metrics) of the rows of the table that have a metric; each is in the first row that it fits."""
    left = list(there)
    for key, title, patterns in PANELS:
        names = list(dict.fromkeys(name for pattern in patterns for name in left if fnmatchcase(name, pattern)))
        if names:
            left = [name for name in left if name not in names]
            yield key, title, names


def _alone(metric: str) -> tuple[str, str]:
    """Key and title of a panel that the table does not have."""
    return f"metric:{metric}", printable(metric)


def _without_common_start(names: Sequence[str]) -> list[str]:
    """`a/b/mean, a/b/max` as `mean, max`: the panel's title says the rest."""
    parts = [name.split("/") for name in names]
    common = 0
    while len(names) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]
