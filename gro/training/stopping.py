"""When to stop before a reward is over-optimised: rules over what a run has seen so far.

Each takes a series in order and says at which of its places a run stops, or None.  A rule that stops at a place stops
there too when more is known, so the same function serves a run on its way and a study afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from gro.runs.plain import exact
from gro.training.settings import Stopping
from gro.types import Group

GOLD, DISAGREEMENT = "eval_reward", "rewards/disagreement"
"""What the rules look at, by the names under which a run records it."""

Scores = Mapping[str, Sequence[float]]
"""Of the same completions by every member of an ensemble of rewards."""


def turned_down(golds: Sequence[float], patience: int) -> int | None:
    """The first place that, like the `patience` − 1 before it, is not above the best seen before them.

    >>> turned_down([0.0, 1.0, 0.8, 0.9, 2.0], patience=2)
    3
    """
    best, worse = -math.inf, 0
    for place, gold in enumerate(golds):
        worse = 0 if gold > best else worse + 1  # nan is above nothing
        best = gold if gold > best else best
        if worse == patience:
            return place
    return None


def diverged(disagreements: Sequence[float], threshold: float, patience: int) -> int | None:
    """The first place that, like the `patience` − 1 before it, is above `threshold` times the first one.

    >>> diverged([0.4, 0.5, 0.7, 0.8], threshold=1.5, patience=2)
    3
    """
    above = 0
    for place, disagreement in enumerate(disagreements):
        above = above + 1 if disagreement > threshold * disagreements[0] else 0
        if above == patience:
            return place
    return None


def standards(scores: Scores) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each member's scores; a member that never varies has the deviation 1."""
    return {name: (fmean(values), _spread(values) or 1.0) for name, values in scores.items()}


def disagreement(scores: Scores, at_start: Mapping[str, tuple[float, float]]) -> float:
    """How far members are apart on a completion: the standard deviation over them, averaged over completions.

    Rewards of different members have no common zero or unit, so each is measured in its own at the start.  Where
    members were trained on the same preferences, they agree on what they have seen and not on what lies beyond it
    (Coste et al. 2023, https://arxiv.org/abs/2310.02743).
    """
    alike = [[(v - at_start[name][0]) / at_start[name][1] for v in values] for name, values in scores.items()]
    return fmean(stdev(member_scores) for member_scores in zip(*alike, strict=True))


def member_scores(groups: Sequence[Group]) -> dict[str, list[float]]:
    """What each reward gave the samples to which all of them gave something."""
    parts = [c.rewards for g in groups for c in g.completions if c.role == "sample" and c.rewards]
    known = [part for part in parts if all(value is not None for value in part.values())]
    return {name: [float(part[name] or 0.0) for part in known] for name in known[0]} if known else {}


class Watch:
    """A rule in a run: is told of every step and evaluation, and says when and why to stop."""

    def __init__(self, rule: Stopping) -> None:
        self._rule = rule
        self._steps: list[int] = []
        self._seen: list[float] = []
        self._at_start: dict[str, tuple[float, float]] | None = None

    def step(self, step: int, groups: Sequence[Group]) -> dict[str, float]:
        """Looks at the step's samples; what is to be recorded of them."""
        if self._rule.by != "disagreement":
            return {}
        scores = member_scores(groups)
        if len(scores) < 2:  # every reward failed on some sample of this step
            return {}
        self._at_start = self._at_start or standards(scores)
        self._note(step, disagreement(scores, self._at_start))
        return {DISAGREEMENT: self._seen[-1]}

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at held-out metrics."""
        if self._rule.by == "gold" and GOLD in metrics:
            self._note(step, metrics[GOLD])

    def reason(self) -> str | None:
        """Why to stop now; None: go on."""
        rule, seen = self._rule, self._seen
        if rule.by == "gold":
            if turned_down(seen, rule.patience) is None:
                return None
            best = max(range(len(seen)), key=lambda i: -math.inf if math.isnan(seen[i]) else seen[i])
            return (
                f"the held-out reward was highest at step {self._steps[best]} ({seen[best]:.4g}) and has not been "
                f"higher in {rule.patience} evaluations since (now {seen[-1]:.4g})"
            )
        if diverged(seen, rule.threshold, rule.patience) is None:
            return None
        return (
            f"the rewards disagree {seen[-1] / seen[0] if seen[0] else math.inf:.3g} times as much as at step "
            f"{self._steps[0]} ({seen[-1]:.4g}, then {seen[0]:.4g}; the limit is {rule.threshold:g} times)"
        )

    def state(self) -> dict[str, Any]:
        """What was seen so far, in plain values."""
        start = None
        if self._at_start is not None:
            start = {name: [exact(mean), exact(std)] for name, (mean, std) in self._at_start.items()}
        return {"steps": list(self._steps), "seen": [exact(value) for value in self._seen], "at_start": start}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        start = state["at_start"]
        self._steps, self._seen = list(state["steps"]), [float(value) for value in state["seen"]]
        self._at_start = start and {name: (float(mean), float(std)) for name, (mean, std) in start.items()}

    def _note(self, step: int, value: float) -> None:
        self._steps.append(step)
        self._seen.append(value)


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
