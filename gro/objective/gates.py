"""Gates: who takes part, told by the rewards themselves.  A gate multiplies v by 0 or 1.

A closed gate does not rescale the others: rows that it leaves out still count in the term's share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gro.objective.anchors import Scope
from gro.objective.credit import EQUAL, scored_rows
from gro.objective.groups import same_group, sum_over
from gro.types import Batch


class Gate(Protocol):
    @property
    def symbol(self) -> str: ...

    scope: ClassVar[Scope]

    def __call__(self, batch: Batch) -> Tensor:
        """bool [B]."""
        ...


@dataclass(frozen=True)
class RewardAbove:
    """1[R > τ_e], τ_e the threshold of the e-th pass over the same completions; the last one stays.

    ReST's filter, which rises with every Improve step (Gulcehre et al. 2023, sec. 3).
    """

    thresholds: tuple[float, ...]
    symbol = "1[R > τ]"
    scope: ClassVar[Scope] = "row"

    def __post_init__(self) -> None:
        if not self.thresholds or any(a >= b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ValueError(f"thresholds must rise, at least one; found {list(self.thresholds)}")

    def __call__(self, batch: Batch) -> Tensor:
        threshold = self.thresholds[min(batch.epoch, len(self.thresholds) - 1)]
        return scored_rows(batch) & (_rewards(batch) > threshold)


@dataclass(frozen=True)
class BestOfGroup:
    """1[R = the group's largest reward]: best-of-n; all that are equally good."""

    symbol = "1[R = max R]"
    scope: ClassVar[Scope] = "group"

    def __call__(self, batch: Batch) -> Tensor:
        scored_B, reward_B = scored_rows(batch), _rewards(batch)
        members_BB = same_group(batch) & scored_B[None, :]
        best_B = reward_B[None, :].masked_fill(~members_BB, -torch.inf).amax(1)
        return scored_B & (reward_B >= best_B - EQUAL * best_B.abs().clamp(min=1))


@dataclass(frozen=True)
class GroupFails:
    """1[mean R of the prompt's samples ≤ τ], for every row of the prompt; closed where no sample has a reward."""

    threshold: float = 0.0
    symbol = "1[mean R ≤ τ]"
    scope: ClassVar[Scope] = "group"

    def __call__(self, batch: Batch) -> Tensor:
        return _of_group(batch, lambda mean_B: mean_B <= self.threshold)


@dataclass(frozen=True)
class GroupSucceeds:
    """1[mean R of the prompt's samples > τ], for every row of the prompt."""

    threshold: float = 0.0
    symbol = "1[mean R > τ]"
    scope: ClassVar[Scope] = "group"

    def __call__(self, batch: Batch) -> Tensor:
        return _of_group(batch, lambda mean_B: mean_B > self.threshold)


def _rewards(batch: Batch) -> Tensor:
    """[B], 0 where there is none."""
    if batch.reward_B is None:
        raise ValueError("a gate reads rewards; the batch has no reward_B")
    return batch.reward_B.nan_to_num(0.0)


def _of_group(batch: Batch, holds: Callable[[Tensor], Tensor]) -> Tensor:
    members_BB = same_group(batch) & scored_rows(batch)[None, :]
    count_B = members_BB.sum(1)
    return holds(sum_over(members_BB, _rewards(batch)) / count_B.clamp(min=1)) & (count_B > 0)
