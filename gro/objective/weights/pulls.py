"""Pulls towards an anchor, and entropy: v = 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gro.objective.values import safe_exp


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
