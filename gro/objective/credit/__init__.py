"""Credit: rewards → advantages, computed once per update on the global batch.

`credit(batch, state) → (advantage_BX, state)` is pure; `state` is a dict of plain numbers that the run keeps (a
moving baseline, say).  Advantages are [B, 1], or [B, T] where tokens are credited separately.  Rows without a reward
(failed, pending) and rows of length 0 have advantage 0 and are left out of every mean.  Demonstrations are not
compared with samples: their advantage is 0, but for `NoBaseline`, where it is the reward if they carry one.

A credit that reads the critic's values also says what the critic learns: `returns(batch, state) → returns_BT`, with the
state before the call.

Where a credit takes `kl` = β > 0, it first folds −β(ℓ_old − ℓ_ref) (k1) into the reward: as a sequence total before
a group's baseline, as a token's reward-to-go elsewhere.
"""

from __future__ import annotations

from gro.objective.credit.around import AdaptiveKl, KlAfterwards, Normalised
from gro.objective.credit.base import EQUAL, Credit, State, scored_rows
from gro.objective.credit.baselines import (
    BatchMean,
    Constant,
    Greedy,
    Labels,
    MovingAverage,
    NoBaseline,
    TokenZScore,
    Versus,
)
from gro.objective.credit.critics import Gae, StateValue
from gro.objective.credit.groups import GroupMean, GroupSoftmax, GroupZScore, LeaveOneOut, LeaveOneOutZScore

__all__ = [
    "EQUAL",
    "AdaptiveKl",
    "BatchMean",
    "Constant",
    "Credit",
    "Gae",
    "Greedy",
    "GroupMean",
    "GroupSoftmax",
    "GroupZScore",
    "KlAfterwards",
    "Labels",
    "LeaveOneOut",
    "LeaveOneOutZScore",
    "MovingAverage",
    "NoBaseline",
    "Normalised",
    "State",
    "StateValue",
    "TokenZScore",
    "Versus",
    "scored_rows",
]
