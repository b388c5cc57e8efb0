"""How often one model's answer is better than another's to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gro.evaluation.estimates import Estimate, mean, proportion, ratio
from gro.judges.judge import Case, Comparison
from gro.types import Group

Metrics = dict[str, Estimate]
Outcomes = Sequence[Sequence[float | None]]
"""Per prompt, per pair of answers: 1 where ours is better, 0 where theirs is, ½ for a tie, None where it failed."""


class Comparing(Protocol):
    """A judge, as far as win-rates need it."""

    def compare(self, cases: Sequence[Case]) -> list[Comparison]:
        """Which of each case's two answers is better."""
        ...


def summary(outcomes: Outcomes) -> Metrics:
    """win_rate, where ties count one half; the shares won, tied and lost; and how many pairs could not be judged.

    One pair per prompt: Wilson's interval.  Several are no independent draws: an interval over prompts.  A pair that
    failed is left out.
    """
    judged = [[value for value in values if value is not None] for values in outcomes]
    everything = [value for values in judged for value in values]
    if all(len(values) <= 1 for values in judged):
        rate = proportion(sum(everything), len(everything))
    else:
        rate = ratio([sum(values) for values in judged], [float(len(values)) for values in judged])
    parts = {name: _share(judged, value) for name, value in (("won", 1.0), ("tied", 0.5), ("lost", 0.0))}
    failed = float(sum(map(len, outcomes)) - len(everything))
    return {"win_rate": rate, **parts, "undecided": Estimate(failed)}


def by_reward(ours: Sequence[Group], theirs: Sequence[Group]) -> list[list[float | None]]:
    """The i-th answer of one against the i-th of the other, by the rewards they have; equal rewards are a tie."""

    def outcome(mine: float | None, other: float | None) -> float | None:
        return None if mine is None or other is None else 0.5 + 0.5 * ((mine > other) - (mine < other))

    return [
        [outcome(a.reward, b.reward) for a, b in zip(one.completions, two.completions, strict=True)]
        for one, two in zip(ours, theirs, strict=True)
    ]


def by_judge(judge: Comparing, cases: Sequence[Sequence[Case]]) -> tuple[list[list[float | None]], Metrics]:
    """The same by a judge, and how often its two orders disagreed, which is then a tie.

    cases: per prompt, each with our answer first.
    """
    found = judge.compare([case for same in cases for case in same])
    left = iter(found)
    outcomes = [[next(left).value for _ in same] for same in cases]
    both = [float(not comparison.agreed) for comparison in found if comparison.value is not None]
    return outcomes, {"orders_disagree": mean(both)}


def _share(judged: Sequence[Sequence[float]], value: float) -> Estimate:
    count = sum(list(values).count(value) for values in judged)
    total = sum(map(len, judged))
    return Estimate(count / total if total else float("nan"))
