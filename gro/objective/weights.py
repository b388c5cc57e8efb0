"""Weights w(u, A): how strongly a completion still pulls, given how far it is from its anchor.

Every weight is called as `weight(u, v, a, u2)`, all broadcastable: u = measure − anchor, v = v(A), a = A and u2 the
comparison with the term's second anchor.  Nothing in here carries a gradient.  `potential` is the antiderivative:
moving u and u2 together by dℓ changes it by −w·v dℓ, so the sum of share · potential is the *value* of the paper's
loss.  Weights whose paper detaches the ratio have none.

s is sign(v) for clips, which come from min(r·v, clip(r)·v), and sign(A) for separation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gro.objective.values import positive, safe_exp


class Weight(Protocol):
    """w: see the module's head for the arguments; returns the shape they broadcast to."""

    @property
    def symbol(self) -> str: ...

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor: ...

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor | None:
        """P with −dP/dℓ = w·v, or None where the paper's loss has no such value."""
        ...


class _NoPotential:
    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor | None:
        return None


# --- likelihood and ratios -------------------------------------------------------------------------------------------


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
class TruncatedRatio(_NoPotential):
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


# --- preferences: the GPO family (Tang et al. 2024), w = −βf′(βsu), potential f(βsu) ---------------------------------


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


# --- pulls towards the anchor, v = 1 ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class K1:
    """w = −β: refused.  As a loss term k1 has zero expected gradient, so it is noise and no regularisation."""

    beta: float
    symbol = "−β"

    def __post_init__(self) -> None:
        raise ValueError(
            "k1 as a loss term has zero expected gradient: it adds noise and regularises nothing. "
            "Use k2 or RatioK3 in the loss, or fold k1 into the reward (credit's kl=...)"
        )


@dataclass(frozen=True)
class K2:
    """w = −βu, the gradient of β·½u²: the reverse KL, state by state, on-policy."""

    beta: float
    symbol = "−βu"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return -self.beta * u

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * self.beta * u.square() / 2


@dataclass(frozen=True)
class K3:
    """w = β(e^−u − 1), the gradient of β(e^−u − 1 + u) (GRPO, Shao et al. 2024, eq. 4).

    In expectation this is the *forward* KL's gradient, ∇KL(π_ref‖π_θ), although the value estimates the reverse KL.
    With `limit`, a token's k3 is cut off there, and beyond it nothing pulls (verl, at 10).
    """

    beta: float
    limit: float | None = None
    symbol = "β(e^−u − 1)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        w = self.beta * (safe_exp(-u) - 1)
        return w if self.limit is None else w.masked_fill(self._k3(u) > self.limit, 0.0)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        k3 = self._k3(u)
        return v * self.beta * (k3 if self.limit is None else k3.clamp(max=self.limit))

    def _k3(self, u: Tensor) -> Tensor:
        return safe_exp(-u) - 1 + u


@dataclass(frozen=True)
class RatioK3:
    """w = −β r u_ref, the gradient of β·r·k3 with r differentiated: exactly ∇reverse KL, also off-policy.

    First anchor old (r = e^u), second anchor ref (u2).  DeepSeek-V3.2; TRL's default where β ≠ 0.
    """

    beta: float
    symbol = "−βr·u_ref"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        assert u2 is not None, "RatioK3 compares with old and, by the term's second anchor, with ref"
        return -self.beta * safe_exp(u) * u2

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        assert u2 is not None
        return v * self.beta * safe_exp(u) * (safe_exp(-u2) - 1 + u2)


@dataclass(frozen=True)
class SampledEntropy:
    """w = −c·r·u, u = ℓ: the entropy's gradient, estimated on samples of the old policy (second anchor old).

    Without r it is right on-policy only.  The exact bonus, from the whole distribution, is `EntropyBonus`.
    """

    coefficient: float
    symbol = "−c·r·u"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        assert u2 is not None, "SampledEntropy takes its ratio at the term's second anchor"
        return -self.coefficient * safe_exp(u2) * u

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        assert u2 is not None
        return v * self.coefficient * safe_exp(u2) * (u - 1)


@dataclass(frozen=True)
class Stay:
    """w = −β(e^u − 1), the gradient of β(e^u − 1 − u): KL(old‖θ) on samples of old, exactly 0 at θ = old."""

    beta: float
    symbol = "−β(e^u − 1)"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return -self.beta * (safe_exp(u) - 1)

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return v * self.beta * (safe_exp(u) - 1 - u)


# --- GRO -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separation:
    """w = σ(−κ(su − m))/σ(κm): 1 at the anchor, 0 once well separated, up to 1 + e^(−κm) where the order is wrong.

    GRO, eq. 35–37: the weight "to encourage separation while preventing excessively pushing away those
    well-distinguished samples".  At κ → 0 it is 1, REINFORCE.
    """

    kappa: float = 10.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        positive(kappa=self.kappa)

    @property
    def symbol(self) -> str:
        return "σ(−κ(su − m))/σ(κm)" if self.margin else "2σ(−κsu)"

    @property
    def _scale(self) -> float:
        return 1 / (1 + math.exp(-self.kappa * self.margin))

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        return (-self.kappa * (a.sign() * u - self.margin)).sigmoid() / self._scale

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        x = self.kappa * (a.sign() * u - self.margin)
        return torch.where(a == 0, -v * u, -v * a.sign() * F.logsigmoid(x) / (self.kappa * self._scale))


@dataclass(frozen=True)
class Corrected(_NoPotential):
    """inner(u) · e^u2: a weight on samples of an older policy, its ratio taken at the term's second anchor."""

    inner: Weight

    @property
    def symbol(self) -> str:
        return f"r·{self.inner.symbol}"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        assert u2 is not None, "Corrected needs the term's second anchor"
        return self.inner(u, v, a, None) * safe_exp(u2)


plain = One()
