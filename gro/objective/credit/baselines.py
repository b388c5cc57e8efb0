"""Baselines that need no other completion of the prompt, and labels in their place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gro.objective.credit.base import (
    EQUAL,
    Folds,
    State,
    equal,
    in_groups,
    kl_BT,
    penalised,
    rewards,
    scored_rows,
    spread,
    to_go,
    token_rewards,
)
from gro.objective.credit.groups import GroupMean
from gro.objective.groups import same_group, sum_over
from gro.types import ROLES, Batch


@dataclass(frozen=True)
class NoBaseline(Folds):
    """A = R: the reward as it is."""

    kl: float = 0.0
    symbol = "R"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.reward_B is None:  # demonstrations only
            return torch.zeros(len(batch.group_B), 1, device=batch.group_B.device), state
        return penalised(batch, self.kl).masked_fill(batch.mask_BT.sum(1) == 0, 0.0)[:, None], state


@dataclass(frozen=True)
class Constant(Folds):
    """A = R − b."""

    baseline: float
    kl: float = 0.0
    symbol = "R − b"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        advantage_B = penalised(batch, self.kl) - self.baseline
        return advantage_B.masked_fill(~scored_rows(batch), 0.0)[:, None], state


@dataclass(frozen=True)
class MovingAverage(Folds):
    """A = R − the mean of *earlier* steps' mean rewards; at the first step, minus the mean of the batch's others.

    Williams 1992's reinforcement baseline.  With a KL penalty, R is the reward-to-go of each token.
    State: steps seen and the mean of their mean rewards.
    """

    kl: float = 0.0

    @property
    def symbol(self) -> str:
        return f"{'R_to-go' if self.kl else 'R'} − mean of earlier steps"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        reward_B = rewards(batch)
        steps, mean = state.get("steps", 0), state.get("mean", 0.0)
        count = int(scored_B.sum())
        if count == 0:
            return torch.zeros_like(reward_B)[:, None], state
        now = float(reward_B[scored_B].double().mean())
        if steps:
            baseline_B = torch.full_like(reward_B, mean)
        elif equal(reward_B[scored_B]):  # also a single completion, of which there is nothing to leave out
            baseline_B = reward_B
        else:
            baseline_B = (now * count - reward_B) / (count - 1)
        to_go_BX = to_go(token_rewards(batch, self.kl)) if self.kl else reward_B[:, None]
        advantage_BX = (to_go_BX - baseline_B[:, None]).masked_fill(~scored_B[:, None], 0.0)
        return advantage_BX, {**state, "steps": steps + 1, "mean": (mean * steps + now) / (steps + 1)}


@dataclass(frozen=True)
class BatchMean(Folds):
    """A = R − the batch's mean reward; with `std`, divided by its standard deviation (ddof, + eps)."""

    kl: float = 0.0
    std: bool = False
    ddof: int = 0
    eps: float = 1e-8
    symbol = "R − batch mean"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        reward_B = penalised(batch, self.kl)
        count = int(scored_B.sum())
        if count <= self.ddof:
            return torch.zeros_like(reward_B)[:, None], state
        advantage_B = reward_B - reward_B[scored_B].mean()
        if self.std:
            advantage_B = advantage_B / (reward_B[scored_B].std(correction=self.ddof) + self.eps)
        everybody_BB = scored_B[None, :].expand(len(reward_B), -1)
        return in_groups(advantage_B, reward_B, scored_B, everybody_BB), state


@dataclass(frozen=True)
class TokenZScore(Folds):
    """The reward-to-go of every token, z-scored over all completion *tokens* of the batch.

    REINFORCE++ (Hu et al. 2025, eq. 4–6): ddof 0, variance floored.  With `group_baseline`, the group's mean reward
    is subtracted first (REINFORCE++-baseline).
    """

    kl: float = 0.01
    group_baseline: bool = False
    floor: float = 1e-8
    symbol = "token z-score of R_to-go"

    @property
    def group_size(self) -> int:  # type: ignore[override]
        return 2 if self.group_baseline else 1

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        if self.group_baseline:
            centred_B1, _ = GroupMean()(batch, {})
            batch = replace(batch, reward_B=centred_B1[:, 0])
        to_go_BT = to_go(token_rewards(batch, self.kl))
        inside_BT = batch.mask_BT & scored_B[:, None]
        if not bool(inside_BT.any()):
            return torch.zeros_like(to_go_BT), state
        tokens = to_go_BT[inside_BT]
        if equal(tokens):
            return torch.zeros_like(to_go_BT), state
        std = tokens.var(correction=0).clamp(min=self.floor).sqrt()
        return ((to_go_BT - tokens.mean()) / std).masked_fill(~inside_BT, 0.0), state


@dataclass(frozen=True)
class Greedy(Folds):
    """A = R − R(greedy), then −β k1 of the sample only (ReMax, Li et al. 2023, eq. 6): to-go, or `immediate`."""

    kl: float = 0.0
    immediate: bool = False
    symbol = "R − R(greedy)"

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | {"greedy"}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.greedy_B is None:
            raise ValueError("this credit subtracts the greedy completion's reward; the batch has no greedy_B")
        scored_B = scored_rows(batch) & ~batch.greedy_B.isnan()
        advantage_BX = (rewards(batch) - batch.greedy_B.nan_to_num(0.0))[:, None]
        if self.kl:
            penalty_BT = -self.kl * kl_BT(batch)
            advantage_BX = advantage_BX + (penalty_BT if self.immediate else to_go(penalty_BT))
        return advantage_BX.masked_fill(~scored_B[:, None], 0.0), state


@dataclass(frozen=True)
class Labels:
    """A = ±1: better or worse than its group's mean; a row alone has the sign of its reward.  A tie is 0.

    So is a row whose companions' rewards have failed: of a score, without another, nobody knows whether it is good.
    """

    symbol = "±1"
    group_size = 1

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        reward_B = rewards(batch)
        members_BB = same_group(batch) & scored_B[None, :]
        count_B = members_BB.sum(1)
        mean_B = torch.where(count_B > 1, sum_over(members_BB, reward_B) / count_B.clamp(min=1), 0.0)
        spread_B, size_B = spread(reward_B, members_BB)
        gap_B, equal_B = reward_B - mean_B, EQUAL * size_B.clamp(min=1)
        # Of two, each is half the spread from the mean; of more, one can be at the mean while the others are not.
        tie_B = (count_B > 1) & ((spread_B <= equal_B) | (gap_B.abs() <= equal_B / 2))
        samples_B = batch.samples_B & batch.mask_BT.any(1)
        left_B = (count_B == 1) & ((same_group(batch) & samples_B[None, :]).sum(1) > 1)
        return gap_B.sign().masked_fill(tie_B | left_B | ~scored_B, 0.0)[:, None], state


@dataclass(frozen=True)
class Versus:
    """A = +1 for demonstrations and −1 for the policy's own samples; no rewards (SPIN, Chen et al. 2024)."""

    symbol = "+1 demonstration, −1 sample"
    group_size = 1

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.role_B is None:
            raise ValueError("demonstrations are told from samples by role_B; the batch has none")
        target_B = batch.role_B == ROLES.index("target")
        side_B = target_B.float() - batch.samples_B.float()
        return side_B.masked_fill(~batch.mask_BT.any(1), 0.0)[:, None], state
