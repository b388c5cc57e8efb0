"""Units φ: in which unit the log-likelihood of a completion is differentiated, and measured.

A unit maps the log-probs of a completion's tokens, logp_BT, to φ_BX: [B, T] for `token`, [B, 1] for the others.
Masked tokens contribute nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

LOG_ALMOST_ONE = math.log1p(-1e-6)
"""Cap on an average log-prob before its odds are taken: the odds of probability 1 are infinite."""


class Unit(Protocol):
    """φ: [B, T] log-probs and mask → [B, T] or [B, 1]."""

    @property
    def symbol(self) -> str: ...

    per_token: ClassVar[bool]
    normalised: ClassVar[bool]
    """Whether φ is a mean over the tokens, so that a per-token share must be multiplied by their number."""

    def __call__(self, logp_BT: Tensor, mask_BT: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Token:
    """φ_t = ℓ_t."""

    symbol = "ℓ_t"
    per_token: ClassVar[bool] = True
    normalised: ClassVar[bool] = False

    def __call__(self, logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return logp_BT.masked_fill(~mask_BT, 0.0)


@dataclass(frozen=True)
class Total:
    """φ = Σ_t ℓ_t, the log-likelihood of the completion."""

    symbol = "Σℓ"
    per_token: ClassVar[bool] = False
    normalised: ClassVar[bool] = False

    def __call__(self, logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return logp_BT.masked_fill(~mask_BT, 0.0).sum(1, keepdim=True)


@dataclass(frozen=True)
class Score(Total):
    """φ = r(x, y), a reward model's score: the sum over the one entry that each row of such a batch has."""

    symbol = "r"


@dataclass(frozen=True)
class Average:
    """φ = Σ_t ℓ_t / |y|."""

    symbol = "Σℓ/|y|"
    per_token: ClassVar[bool] = False
    normalised: ClassVar[bool] = True

    def __call__(self, logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return total(logp_BT, mask_BT) / mask_BT.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class Discounted:
    """φ = Σ_{t≥0} γ^t ℓ_t over the trained tokens (CPL, Hejna et al. 2024, eq. 5)."""

    gamma: float
    symbol = "Σγ^tℓ_t"
    per_token: ClassVar[bool] = False
    normalised: ClassVar[bool] = False

    def __call__(self, logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
        place_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        discount_BT = torch.full_like(logp_BT, self.gamma).pow(place_BT)
        return (discount_BT * logp_BT).masked_fill(~mask_BT, 0.0).sum(1, keepdim=True)


@dataclass(frozen=True)
class LogOdds:
    """φ = log p/(1 − p) with log p the average log-prob (ORPO, Hong et al. 2024, eq. 4)."""

    symbol = "log odds"
    per_token: ClassVar[bool] = False
    normalised: ClassVar[bool] = True

    def __call__(self, logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
        logp_B1 = average(logp_BT, mask_BT).clamp(max=LOG_ALMOST_ONE)
        return logp_B1 - torch.log(-torch.expm1(logp_B1))


token = Token()
total = Total()
score = Score()
average = Average()
discounted = Discounted
log_odds = LogOdds()
