"""Weights of preference losses: the GPO family (Tang et al. 2024), w = −βf′(βsu) with potential f(βsu), and its kin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gro.objective.values import positive, safe_exp


@dataclass(frozen=True)
class Logistic:
    """w = βσ(−βsu), from f = −log σ: β/2 at the anchor, 0 once the preferred completion is far ahead.

    DPO (Rafailov et al. 2023, eq. 7).  With smoothing α, the share of labels assumed flipped, f is
    −(1 − α) log σ(x) − α log σ(−x) and the weight β(σ(−βsu) − α) (conservative DPO).
    """

    beta: float = 0.1
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    @property
    def symbol(self) -> str:
        return "β(σ(−βsu) − α)" if self.smoothing else "βσ(−βsu)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return self.beta * ((-self.beta * a.sign() * u).sigmoid() - self.smoothing)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * a.sign() * u
        return v * a.sign() * (-(1 - self.smoothing) * F.logsigmoid(x) - self.smoothing * F.logsigmoid(-x))


@dataclass(frozen=True)
class RobustLogistic:
    """DPO's weight, unbiased under labels flipped with probability α (robust DPO, Chowdhury et al. 2024, eq. 11)."""

    beta: float = 0.1
    flip: float = 0.1
    symbol = "β((1−α)σ(−βsu) + ασ(βsu))/(1−2α)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * a.sign() * u
        mix = (1 - self.flip) * (-x).sigmoid() + self.flip * x.sigmoid()
        return self.beta * mix / (1 - 2 * self.flip)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * a.sign() * u
        mix = -(1 - self.flip) * F.logsigmoid(x) + self.flip * F.logsigmoid(-x)
        return v * a.sign() * mix / (1 - 2 * self.flip)


@dataclass(frozen=True)
class BiasedLogistic:
    """w = βkσ(−βk·su), k = 1 for the preferred completion and b for the other.

    From −log σ(β(d₊ − b·d₋)) with the shift `Partner(b)`, whose u₋ = d₋ − d₊/b: CPL with its
    bias λ (Hejna et al. 2024).
    """

    beta: float = 0.1
    bias: float = 1.0
    symbol = "βkσ(−βk·su)"

    def _beta(self, a: Tensor) -> Tensor:
        return self.beta * torch.where(a < 0, torch.full_like(a, self.bias), torch.ones_like(a))

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        beta = self._beta(a)
        return beta * (-beta * a.sign() * u).sigmoid()

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return -v * a.sign() * F.logsigmoid(self._beta(a) * a.sign() * u)


@dataclass(frozen=True)
class Exo:
    """w = βσ(x)σ(−x)(log((1 − α)/α) − x), x = βsu, α the share of labels assumed flipped.

    From KL(σ(x)‖1 − α), the reverse of the divergence that DPO with label smoothing takes (EXO, Ji et al. 2024,
    eq. 16).
    """

    beta: float = 0.1
    smoothing: float = 1e-3
    symbol = "βσ(βsu)σ(−βsu)(log((1−α)/α) − βsu)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * a.sign() * u
        odds = math.log1p(-self.smoothing) - math.log(self.smoothing)
        return self.beta * x.sigmoid() * (-x).sigmoid() * (odds - x)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * a.sign() * u
        kept = x.sigmoid() * (F.logsigmoid(x) - math.log1p(-self.smoothing))
        flipped = (-x).sigmoid() * (F.logsigmoid(-x) - math.log(self.smoothing))
        return v * a.sign() * (kept + flipped)


@dataclass(frozen=True)
class Hinge:
    """w = β where βsu < 1, else 0, from f(x) = max(0, 1 − x)."""

    beta: float = 0.1
    symbol = "β1[βsu < 1]"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return self.beta * (self.beta * a.sign() * u < 1).to(u)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * a.sign() * (1 - self.beta * a.sign() * u).clamp(min=0)


@dataclass(frozen=True)
class Squared:
    """w = 2β(1 − βsu), from f(x) = (1 − x)²."""

    beta: float = 0.1
    symbol = "2β(1 − βsu)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return 2 * self.beta * (1 - self.beta * a.sign() * u)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * a.sign() * (1 - self.beta * a.sign() * u).square()


@dataclass(frozen=True)
class Ipo:
    """w = 2(1/(2β) − su), from (h − 1/(2β))², h the u of the preferred completion (IPO, Azar et al. 2023, eq. 17)."""

    beta: float = 0.1
    symbol = "2(1/(2β) − su)"

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return 2 * (0.5 / self.beta - a.sign() * u)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * a.sign() * (a.sign() * u - 0.5 / self.beta).square()


@dataclass(frozen=True)
class Exponential:
    """w = βe^(−βsu), from f(x) = e^−x."""

    beta: float = 0.1
    symbol = "βe^(−βsu)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return self.beta * safe_exp(-self.beta * a.sign() * u)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * a.sign() * safe_exp(-self.beta * a.sign() * u)


@dataclass(frozen=True)
class TruncatedQuadratic:
    """w = 2β max(0, 1 − βsu), from f(x) = max(0, 1 − x)²."""

    beta: float = 0.1
    symbol = "2β max(0, 1 − βsu)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return 2 * self.beta * (1 - self.beta * a.sign() * u).clamp(min=0)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * a.sign() * (1 - self.beta * a.sign() * u).clamp(min=0).square()


@dataclass(frozen=True)
class Savage:
    """w = 2βσ(βsu)σ(−βsu)², from f(x) = 1/(1 + e^x)² = σ(−x)²."""

    beta: float = 0.1
    symbol = "2βσ(βsu)σ(−βsu)²"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * a.sign() * u
        return 2 * self.beta * x.sigmoid() * (-x).sigmoid().square()

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * a.sign() * (-self.beta * a.sign() * u).sigmoid().square()


@dataclass(frozen=True)
class Bell:
    """w = βσ(βu)σ(−βu), from λ_y − λ_y σ(βsu) (KTO, Ethayarajh et al. 2024, eq. 8): strongest at the anchor."""

    beta: float = 0.1
    symbol = "βσ(βu)σ(−βu)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return self.beta * (self.beta * u).sigmoid() * (-self.beta * u).sigmoid()

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v.abs() * (-self.beta * v.sign() * u).sigmoid()


@dataclass(frozen=True)
class Nca:
    """w = β((1 + A)σ(−βu) − σ(βu)), from −(1 + A) log σ(βu) − log σ(−βu) with v = 1.

    A = G·softmax(R/α) − 1, or ±1 for a pair: classifying the reward's samples against the policy's (NCA, Chen et al.
    2024, sec. 4).
    """

    beta: float = 0.1
    symbol = "β((1 + A)σ(−βu) − σ(βu))"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * u
        return self.beta * ((1 + a) * (-x).sigmoid() - x.sigmoid())

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.beta * u
        return -v * ((1 + a) * F.logsigmoid(x) + F.logsigmoid(-x))


@dataclass(frozen=True)
class Regression:
    """w = (2/η)(A − u/η), from (u/η − A)² with v = 1 (REBEL, Gao et al. 2024, eq. 9)."""

    eta: float = 1.0
    symbol = "(2/η)(A − u/η)"

    def __post_init__(self) -> None:
        positive(eta=self.eta)

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return 2 / self.eta * (a - u / self.eta)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * (u / self.eta - a).square()
