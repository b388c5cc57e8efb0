"""Baselines made from the other completions of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gro.objective.credit.base import (
    EQUAL,
    Folds,
    State,
    in_groups,
    members,
    penalised,
    spread,
)
from gro.objective.groups import sum_over
from gro.objective.values import positive
from gro.types import Batch


@dataclass(frozen=True)
class GroupMean(Folds):
    """A = R − mean of the group (Dr. GRPO)."""

    kl: float = 0.0
    symbol = "R − group mean"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = members(batch)
        reward_B = penalised(batch, self.kl)
        mean_B = sum_over(members_BB, reward_B) / members_BB.sum(1).clamp(min=1)
        return in_groups(reward_B - mean_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class GroupZScore(Folds):
    """A = (R − mean)/(std + eps) of the group (GRPO, Shao et al. 2024, sec. 4.1.2; GRO, eq. 11: ddof 0)."""

    kl: float = 0.0
    ddof: int = 0
    eps: float = 1e-6
    symbol = "(R − group mean)/(group std + ε)"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = members(batch)
        reward_B = penalised(batch, self.kl)
        count_B = members_BB.sum(1)
        mean_B = sum_over(members_BB, reward_B) / count_B.clamp(min=1)
        square_B = sum_over(members_BB, (reward_B - mean_B).square())
        std_B = (square_B / (count_B - self.ddof).clamp(min=1)).sqrt()
        # Where std is 0 the rewards are equal and in_groups returns 0; the division must only not be 0/0.
        advantage_B = (reward_B - mean_B) / (std_B + self.eps).masked_fill(std_B + self.eps == 0, 1.0)
        return in_groups(advantage_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class LeaveOneOut(Folds):
    """A = R − mean of the group's others (RLOO, Ahmadian et al. 2024, eq. 7)."""

    kl: float = 0.0
    symbol = "R − mean of the others"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = members(batch)
        reward_B = penalised(batch, self.kl)
        others_B = sum_over(members_BB, reward_B) - reward_B
        advantage_B = reward_B - others_B / (members_BB.sum(1) - 1).clamp(min=1)
        return in_groups(advantage_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class LeaveOneOutZScore(Folds):
    """A = (R − mean)/(std + eps), both of the group's *others*, ddof 1; not divided where that std is 0 or undefined.

    NeMo-RL's: of a group of two there is one other, so nothing to divide by.
    """

    kl: float = 0.0
    eps: float = 1e-6
    symbol = "(R − mean of the others)/(std of the others + ε)"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = members(batch)
        reward_B = penalised(batch, self.kl)
        others_BB = members_BB & ~torch.eye(len(reward_B), dtype=torch.bool, device=reward_B.device)
        count_B = others_BB.sum(1)
        mean_B = sum_over(others_BB, reward_B) / count_B.clamp(min=1)
        square_BB = (reward_B[None, :] - mean_B[:, None]).square().masked_fill(~others_BB, 0.0)
        std_B = (square_BB.sum(1) / (count_B - 1).clamp(min=1)).sqrt()
        spread_B, size_B = spread(reward_B, others_BB)
        alike_B = (count_B < 2) | (spread_B <= EQUAL * size_B.clamp(min=1))
        advantage_B = (reward_B - mean_B) / torch.where(alike_B, 1.0, std_B + self.eps)
        return in_groups(advantage_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class GroupSoftmax(Folds):
    """A = G·softmax(R/β) − 1 over the group: exp(R/β) with the 1/Z of GRO, eq. 33, so that it is centred."""

    beta: float = 1.0
    kl: float = 0.0
    symbol = "G·softmax(R/β) − 1"
    group_size = 2

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = members(batch)
        reward_B = penalised(batch, self.kl)
        logit_BB = (reward_B / self.beta)[None, :].masked_fill(~members_BB, -torch.inf)
        share_B = (reward_B / self.beta - torch.logsumexp(logit_BB, 1)).nan_to_num(0.0, 0.0, 0.0).exp()
        return in_groups(members_BB.sum(1) * share_B - 1, reward_B, scored_B, members_BB), state
