"""Runs that differ only in their seed: their groups, their mean and how sure it is."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gro.runs.differences import MISSING, PLACE, differing, flat
from gro.runs.series import Series

_MOST_KEYS = 2  # settings in a group's label
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""0.975 quantiles of Student's t with 1 to 30 degrees of freedom; any statistics book has them."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs with the same settings but for the seed."""

    label: str
    members: tuple[int, ...]
    """Indices into the runs."""


def groups(runs: Sequence[Series]) -> list[Group]:
    """Runs put together whose settings differ in seeds, and else only in where the run lies, in order of their first.

    A seed is any key whose last part is `seed`.  A second run of the same seeds says nothing new and would make a band
    narrow, so that it is in another group.  A run that is alone is labelled by its name.
    """
    settings = [{key: value for key, value in flat(run.config).items() if key != PLACE} for run in runs]
    together: dict[tuple[frozenset[tuple[str, str]], int], list[int]] = {}
    runs_of: Counter[frozenset[tuple[str, str]]] = Counter()
    for i, own in enumerate(settings):
        same = frozenset((key, value) for key, value in own.items() if not _is_seed(key))
        whole = frozenset(own.items())
        together.setdefault((same, runs_of[whole]), []).append(i)
        runs_of[whole] += 1
    members = list(together.values())
    rivals: defaultdict[str, list[int]] = defaultdict(list)
    for first, *_ in members:
        rivals[runs[first].algorithm].append(first)
    telling = {name: [row.key for row in differing([settings[i] for i in found])] for name, found in rivals.items()}

    def named(first: int, *others: int) -> str:
        algorithm = runs[first].algorithm
        return _label(algorithm, settings[first], telling[algorithm], 1 + len(others)) if others else runs[first].name

    labels = [named(*own) for own in members]
    counts = Counter(labels)
    return [
        Group(f"{label}, {runs[own[0]].name}" if counts[label] > 1 else label, tuple(own))
        for label, own in zip(labels, members, strict=True)
    ]


def _label(algorithm: str, own: Mapping[str, str], telling: Sequence[str], size: int) -> str:
    """The algorithm, what tells the group from others of the same algorithm, and how many runs there are.

    telling: the keys in which these differ.
    """
    keys = [key for key in dict.fromkeys((*own, *telling)) if key in telling and not _is_seed(key)]
    settings = [f"{key.rpartition('.')[2]}={own.get(key, MISSING)}" for key in keys[:_MOST_KEYS]]
    return " ".join([algorithm, *settings, f"({size} seeds)"])


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t: how many standard errors half of a 95 % interval is.

    >>> t_quantile(2)
    4.3027
    """
    assert freedom >= 1, freedom
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964  # of the normal distribution; Cornish and Fisher's expansion around it, to 4 digits from here on
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def mean_and_band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Band:
    """(steps, mean, low, high) of several runs' curves, each of them (steps, values) with some that are finite.

    The steps are those at which any run has a finite value.  Between two values a run is on the straight line through
    them, as it is drawn.  Where all runs are, low and high are the 95 % confidence interval of the mean (Student's t);
    where only some are, as after the end of the shortest, the mean is that of those, and low and high are NaN.
    """
    finite = [(own[np.isfinite(values)], values[np.isfinite(values)]) for own, values in curves]
    steps = np.unique(np.concatenate([own for own, _ in finite]))
    values = np.stack([np.interp(steps, *run, left=np.nan, right=np.nan) for run in finite])
    there = np.isfinite(values)
    count = there.sum(0)
    total = np.where(there, values, 0.0).sum(0)
    mean = np.divide(total, count, out=np.full(len(steps), np.nan), where=count > 0)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    all_there = count == len(curves)
    if len(curves) > 1 and all_there.any():
        found = values[:, all_there]
        half = t_quantile(len(curves) - 1) * found.std(0, ddof=1) / math.sqrt(len(curves))
        low[all_there], high[all_there] = mean[all_there] - half, mean[all_there] + half
    return steps, mean, low, high
