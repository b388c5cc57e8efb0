"""Reward against KL: what is earned for how far a policy has moved from where it began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gro.runs.lines import FRONTIER, Line, Panel
from gro.runs.overlay import DEFAULT_SMOOTHING, grouped, has, overlay
from gro.runs.series import Series

REWARD, KL = "reward", "kl"


def frontier(runs: Sequence[Series], smooth: float = DEFAULT_SMOOTHING, *, by_seed: bool = True) -> Panel | None:
    """A line for each run or group of runs through (KL, reward) in the order of its steps, and the best of all.

    Both are smoothed; a group's are means over those of its runs that have both, and where these are not all, its label
    says so.  The steps are those that have both.  None where no run has.
    """
    members = grouped(runs, by_seed)
    runs = [run if has(run, REWARD) and has(run, KL) else replace(run, metrics={}) for run in runs]
    rewards, kls = ({line.source: line for line in overlay(runs, members, name, smooth)} for name in (REWARD, KL))
    lines = []
    for source in sorted(rewards.keys() & kls.keys()):
        reward, kl = rewards[source], kls[source]
        _, at, there = np.intersect1d(reward.steps, kl.steps, assume_unique=True, return_indices=True)
        x, y = kl.values[there], reward.values[at]
        both = np.isfinite(x) & np.isfinite(y)
        if both.any():
            lines.append(Line(reward.label, source, x[both], y[both]))
    if not lines:
        return None
    best = best_within(np.concatenate([line.steps for line in lines]), np.concatenate([line.values for line in lines]))
    lines.append(Line("the best at no more KL", -1, *best))
    return Panel(FRONTIER, "Reward against KL", "KL to the reference, nats per token", tuple(lines))


def best_within(kl: np.ndarray, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the stairs r(k) = the highest reward of all points with at most that KL.

    >>> best_within(np.array([0.1, 0.3, 0.2, 0.4]), np.array([1.0, 0.5, 3.0, 4.0]))
    (array([0.1, 0.2, 0.2, 0.4, 0.4]), array([1., 1., 3., 3., 4.]))
    """
    order = np.lexsort((-reward, kl))
    kl, reward = kl[order], reward[order]
    better = np.append(True, reward[1:] > np.maximum.accumulate(reward)[:-1])
    kl, reward = kl[better], reward[better]
    return np.repeat(kl, 2)[1:], np.repeat(reward, 2)[:-1]
