"""Credit by a critic's values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gro.objective.credit.base import (
    Folds,
    State,
    penalised,
    scored_rows,
    token_rewards,
)
from gro.types import Batch


@dataclass(frozen=True)
class Gae(Folds):
    """Generalised advantage estimation on a critic's values (Schulman et al. 2016, eq. 16).

    δ_t = r_t + γV_{t+1} − V_t, A_t = Σ_k (γλ)^k δ_{t+k}, V_{T+1} = 0, also after truncation unless `bootstrap`, which
    takes the last value for the one after it.  `whiten`: z-score over the batch's tokens.
    """

    gamma: float = 1.0
    lam: float = 0.95
    kl: float = 0.0
    bootstrap: bool = False
    whiten: bool = False
    symbol = "GAE(γ, λ)"

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | {"values"}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.values_BT is None:
            raise ValueError("GAE needs the critic's values; the batch has no values_BT")
        scored_B = scored_rows(batch)
        rewards_BT = token_rewards(batch, self.kl)
        values_BT = batch.values_BT.to(rewards_BT)
        ahead_B = values_BT.new_zeros(len(values_BT))
        next_B = torch.zeros_like(ahead_B)
        if self.bootstrap and batch.truncated_B is not None:
            place_BT = batch.mask_BT.cumsum(1)
            last_BT = batch.mask_BT & (place_BT == place_BT[:, -1:])
            next_B = values_BT.masked_fill(~last_BT, 0.0).sum(1) * batch.truncated_B
        advantage_BT = torch.zeros_like(values_BT)
        for t in reversed(range(values_BT.shape[1])):
            inside_B = batch.mask_BT[:, t]  # untrained tokens are no states of the process
            delta_B = rewards_BT[:, t] + self.gamma * next_B - values_BT[:, t]
            ahead_B = torch.where(inside_B, delta_B + self.gamma * self.lam * ahead_B, ahead_B)
            next_B = torch.where(inside_B, values_BT[:, t], next_B)
            advantage_BT[:, t] = ahead_B
        inside_BT = batch.mask_BT & scored_B[:, None]
        if self.whiten and int(inside_BT.sum()) > 1:
            tokens = advantage_BT[inside_BT]
            advantage_BT = (advantage_BT - tokens.mean()) / (tokens.std(correction=0) + 1e-8)
        return advantage_BT.masked_fill(~inside_BT, 0.0), state

    def returns(self, batch: Batch, state: State) -> Tensor:
        """[B, T] A + V, the λ-return that the critic learns."""
        assert batch.values_BT is not None
        advantage_BT, _ = replace(self, whiten=False)(batch, {})
        return advantage_BT + batch.values_BT.to(advantage_BT).masked_fill(~batch.mask_BT, 0.0)


@dataclass(frozen=True)
class StateValue(Folds):
    """A = R − V(x), V(x) the critic's value before the first token (A-LoL, Baheti et al. 2023, sec. 3)."""

    kl: float = 0.0
    symbol = "R − V(x)"

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | {"values"}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.values_BT is None:
            raise ValueError("this credit subtracts the critic's value; the batch has no values_BT")
        reward_B = penalised(batch, self.kl)
        first_BT = batch.mask_BT & (batch.mask_BT.cumsum(1) == 1)
        value_B = batch.values_BT.to(reward_B).masked_fill(~first_BT, 0.0).sum(1)
        return (reward_B - value_B).masked_fill(~scored_rows(batch), 0.0)[:, None], state

    def returns(self, batch: Batch, state: State) -> Tensor:
        """[B, T] the completion's reward at every token."""
        return penalised(batch, self.kl)[:, None].expand(batch.mask_BT.shape).masked_fill(~batch.mask_BT, 0.0)
