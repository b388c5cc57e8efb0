"""From several rewards of a completion to the one that is learnt from.

    none  R = Σ_k weight_k · clip_k(r_k)
    each  R = Σ_k weight_k · z(clip_k(r_k))      normalised, then summed
    sum   R = z(Σ_k weight_k · clip_k(r_k))      summed, then normalised

z is the z-score within the group, in every detail that of the credit of `grpo`.  Summed as they are, a reward of large
variance drowns the others; normalised one by one, each moves the policy according to its weight (GDPO,
https://arxiv.org/abs/2601.05242; `normalize_then_sum` in TRL).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from gro.errors import GroError
from gro.rewards.failures import Tally, refuse_failures
from gro.rewards.spec import RewardSpec

if TYPE_CHECKING:  # only types: the rewards themselves never need torch
    from gro.types import Completion, Group

Normalise = Literal["none", "each", "sum"]
EPS = 1e-6
"""Added to the standard deviation."""
EQUAL = 1e-6
"""Numbers that differ by no more than this, relative to the largest (at least 1), count as equal."""

Parts = Mapping[str, float | None]
"""What each reward said of a completion, in the order of the specs; None where it does not apply or failed."""


class Scored(Protocol):
    """What gives completions their rewards: `Rewards`."""

    specs: tuple[RewardSpec, ...]

    def score(self, groups: Sequence[Group], *, step: int = 0, tell: Callable[[Tally], object] = ...) -> list[Group]:
        """The same groups with rewards; `tell` is given how many failed."""
        ...


def weighted_sum(parts: Parts, specs: Sequence[RewardSpec]) -> float | None:
    """Of the parts that apply; None where none does."""
    terms = [
        spec.weight * spec.clipped(part) for spec, part in zip(specs, parts.values(), strict=True) if part is not None
    ]
    return sum(terms) if terms else None


def z_scores(values: Sequence[float | None]) -> list[float | None]:
    """(r − mean)/(std + eps) of those that are there; 0 where they are all equal.

    >>> z_scores([1.0, 0.0, None])
    [0.999998000004, -0.999998000004, None]
    """
    there = [value for value in values if value is not None]
    mean = math.fsum(there) / max(1, len(there))
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in there) / max(1, len(there)))
    if there and max(there) - min(there) <= EQUAL * max(1.0, *map(abs, there)):
        return [None if value is None else 0.0 for value in values]
    return [None if value is None else (value - mean) / (std + EPS) for value in values]


class Normalised:
    """Scores for learning: as `Rewards`, but with the rewards of a group normalised.

    A layer of its own, since held-out answers are judged by what the rewards say.  Each reward's own scores, in
    `Completion.rewards`, stay as they are.

    >>> Normalised(rewards, "each").score(groups, step=3)
    """

    def __init__(self, rewards: Scored, how: Literal["each", "sum"]) -> None:
        """how: each reward, then their sum; or the sum of the rewards."""
        self._rewards, self._how = rewards, how

    def score(
        self, groups: Sequence[Group], *, step: int = 0, tell: Callable[[Tally], object] = refuse_failures
    ) -> list[Group]:
        """The same groups with normalised rewards on every completion that had none.

        Raises GroError for a group of one: its answer can only be compared with itself.  tell: see `Rewards.score`.
        """
        scored = self._rewards.score(groups, step=step, tell=tell)
        return [self._normalised(before, after) for before, after in zip(groups, scored, strict=True)]

    def _normalised(self, before: Group, after: Group) -> Group:
        new = [i for i, c in enumerate(before.completions) if c.role == "sample" and c.reward is None]
        if len(new) == 1:
            raise GroError(
                f"reward_normalise: {self._how} compares the answers to a prompt, and here is a prompt with one: "
                "take a group_size above 1, an algorithm without a greedy baseline, or reward_normalise: none"
            )
        rewarded = [i for i in new if after.completions[i].reward is not None]
        completions = list(after.completions)
        for i, value in zip(rewarded, self._values([completions[i] for i in rewarded]), strict=True):
            completions[i] = replace(completions[i], reward=value)
        return replace(after, completions=tuple(completions))

    def _values(self, completions: Sequence[Completion]) -> list[float | None]:
        if self._how == "sum" or not completions:
            return z_scores([c.reward for c in completions])
        specs = self._rewards.specs
        columns = {}
        for name, spec in zip(completions[0].rewards, specs, strict=True):
            parts = [c.rewards[name] for c in completions]
            columns[name] = z_scores([None if part is None else spec.clipped(part) for part in parts])
        plain = [replace(spec, clip=None) for spec in specs]
        rows = zip(*columns.values(), strict=True)
        return [weighted_sum(dict(zip(columns, row, strict=True)), plain) for row in rows]
