"""Likelihood and importance ratios, plain, clipped and truncated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gro.objective.values import safe_exp
from gro.objective.weights.base import NoPotential


@dataclass(frozen=True)
class One:
    """w = 1: plain weighted log-likelihood."""

    symbol = "1"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return torch.ones_like(u)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return -v * u


@dataclass(frozen=True)
class Ratio:
    """w = r = e^u: importance sampling."""

    symbol = "r"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return safe_exp(u)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return -v * safe_exp(u)


@dataclass(frozen=True)
class ClippedRatio:
    """w = r, but 0 once r has left [1 − low, 1 + high] on the side to which v pushes.

    The gradient of min(r·v, clip(r, 1 − low, 1 + high)·v) (PPO, Schulman et al. 2017, eq. 7).  With `dual` = c, also 0
    where v < 0 and r > c (dual-clip PPO, Ye et al. 2020).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    symbol = "clip(r)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        r = safe_exp(u)
        past = ((v > 0) & (r > 1 + self.high)) | ((v < 0) & (r < 1 - self.low))
        if self.dual is not None:
            past = past | ((v < 0) & (r > self.dual))
        return r.masked_fill(past, 0.0)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        r = safe_exp(u)
        gain = torch.minimum(r * v, r.clamp(1 - self.low, 1 + self.high) * v)
        if self.dual is not None:
            gain = torch.where(v < 0, torch.maximum(gain, self.dual * v), gain)
        return -gain


@dataclass(frozen=True)
class TruncatedRatio(NoPotential):
    """w = clamp(r, low, high), never 0 (CISPO, MiniMax 2025, eq. 5 caps above; A-LoL clamps both sides)."""

    high: float
    low: float = 0.0
    symbol = "clamp(r)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return safe_exp(u).clamp(self.low, self.high)


@dataclass(frozen=True)
class SoftGate:
    """w = 4rσ(τ(r − 1))σ(−τ(r − 1)), τ by the sign of v (SAPO, Gao et al. 2025, eq. 7)."""

    positive: float = 1.0
    negative: float = 1.05
    symbol = "4rσ(τ(r−1))σ(−τ(r−1))"

    def _tau(self, v: Tensor) -> Tensor:
        return torch.where(v > 0, torch.full_like(v, self.positive), torch.full_like(v, self.negative))

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        r = safe_exp(u)
        x = self._tau(v) * (r - 1)
        return 4 * r * x.sigmoid() * (-x).sigmoid()

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        tau = self._tau(v)
        return -v * 4 / tau * (tau * (safe_exp(u) - 1)).sigmoid()
