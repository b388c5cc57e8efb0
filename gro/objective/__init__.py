"""The equation: one estimator, and the slots an algorithm fills (see docs/architecture.md)."""

from gro.objective import anchors, credit, gates, shares, units, values, weights
from gro.objective.anchors import Anchor
from gro.objective.critic import Critic
from gro.objective.estimator import (
    Algorithm,
    TrustRegion,
    coefficients,
    counts,
    entropy_coefficients,
    loss_value,
    surrogate,
)
from gro.objective.terms import Adapt, AnyTerm, EntropyBonus, FromLoss, Parts, Term, select

__all__ = [
    "Adapt",
    "Algorithm",
    "Anchor",
    "AnyTerm",
    "Critic",
    "EntropyBonus",
    "FromLoss",
    "Parts",
    "Term",
    "TrustRegion",
    "anchors",
    "coefficients",
    "counts",
    "credit",
    "entropy_coefficients",
    "gates",
    "loss_value",
    "select",
    "shares",
    "surrogate",
    "units",
    "values",
    "weights",
]
