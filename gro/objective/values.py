"""Values v(A): how an advantage becomes the strength and the sign of a push.  All are monotone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

LIMIT = 20.0
"""Exponents are clamped to ± this everywhere in the objective: e²⁰ ≈ 5e8 is finite in every dtype but fp16."""


def safe_exp(x: Tensor) -> Tensor:
    """exp with its argument clamped to ±20."""
    return x.clamp(-LIMIT, LIMIT).exp()


def positive(**parameters: float) -> None:
    """Raises ValueError naming the first parameter that is not above 0: something divides by it."""
    for name, value in parameters.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")


class Value(Protocol):
    """v: advantages of any shape → the same shape."""

    @property
    def symbol(self) -> str: ...

    imitates: ClassVar[bool]
    """Never negative: a weighted imitation of samples, which needs no ratio however old they are."""

    def __call__(self, advantage: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """v(A) = A."""

    symbol = "A"
    imitates: ClassVar[bool] = False

    def __call__(self, advantage: Tensor) -> Tensor:
        return advantage


@dataclass(frozen=True)
class One:
    """v(A) = 1: imitation, or a term that does not look at rewards."""

    symbol = "1"
    imitates: ClassVar[bool] = True

    def __call__(self, advantage: Tensor) -> Tensor:
        return torch.ones_like(advantage)


@dataclass(frozen=True)
class Exp:
    """v(A) = exp(A/β), at most `cap` (GRO, eq. 33; AWR, Peng et al. 2019).  v(0) = 1: never drop equal groups."""

    beta: float = 1.0
    cap: float | None = None
    symbol = "exp(A/β)"
    imitates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, advantage: Tensor) -> Tensor:
        value = safe_exp(advantage / self.beta)
        return value if self.cap is None else value.clamp(max=self.cap)


@dataclass(frozen=True)
class Expm1:
    """v(A) = exp(A/β) − 1: the exponential value with v(0) = 0."""

    beta: float = 1.0
    symbol = "exp(A/β) − 1"
    imitates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, advantage: Tensor) -> Tensor:
        return torch.expm1((advantage / self.beta).clamp(-LIMIT, LIMIT))


@dataclass(frozen=True)
class Above:
    """v(A) = 1[A > τ]: a filter (ReST, rejection sampling)."""

    threshold: float = 0.0
    symbol = "1[A > τ]"
    imitates: ClassVar[bool] = True

    def __call__(self, advantage: Tensor) -> Tensor:
        return (advantage > self.threshold).to(advantage)


@dataclass(frozen=True)
class Relu:
    """v(A) = max(A, 0): learn from what was better than expected only."""

    symbol = "max(A, 0)"
    imitates: ClassVar[bool] = True

    def __call__(self, advantage: Tensor) -> Tensor:
        return advantage.clamp(min=0)


@dataclass(frozen=True)
class Prospect:
    """v(A) = A^α for gains, −λ(−A)^α for losses (Tversky & Kahneman 1992: α .88, λ 2.25)."""

    alpha: float = 0.88
    aversion: float = 2.25
    symbol = "A^α, −λ(−A)^α"
    imitates: ClassVar[bool] = False

    def __call__(self, advantage: Tensor) -> Tensor:
        size = advantage.abs().pow(self.alpha)
        return torch.where(advantage < 0, -self.aversion * size, size)


@dataclass(frozen=True)
class Desirability:
    """v(A) = λ_D for A > 0, −λ_U for A < 0 (KTO, Ethayarajh et al. 2024, eq. 8)."""

    desirable: float = 1.0
    undesirable: float = 1.0
    symbol = "(λ_D·1[A > 0] − λ_U·1[A < 0])"
    imitates: ClassVar[bool] = False

    def __call__(self, advantage: Tensor) -> Tensor:
        return self.desirable * (advantage > 0).to(advantage) - self.undesirable * (advantage < 0).to(advantage)


identity = Identity()
one = One()
exp = Exp
expm1 = Expm1
above = Above
relu = Relu()
prospect = Prospect
