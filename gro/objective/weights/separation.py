"""GRO's weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gro.objective.values import positive, safe_exp
from gro.objective.weights.base import NoPotential, Weight


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
class Corrected(NoPotential):
    """inner(u) · e^u2: a weight on samples of an older policy, its ratio taken at the term's second anchor."""

    inner: Weight

    @property
    def symbol(self) -> str:
        return f"r·{self.inner.symbol}"

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor:
        assert u2 is not None, "Corrected needs the term's second anchor"
        return self.inner(u, v, a, None) * safe_exp(u2)
