"""The equation: one estimator, and the slots an algorithm fills (see docs/architecture.md)."""

from gro.objective import anchors, credit, shares, units, values, weights
from gro.objective.anchors import Anchor
from gro.objective.estimator import (
    Algorithm,
    FromLoss,
    Parts,
    Term,
    coefficients,
    counts,
    loss_value,
    select,
    surrogate,
)

__all__ = [
    "Algorithm",
    "Anchor",
    "FromLoss",
    "Parts",
    "Term",
    "anchors",
    "coefficients",
    "counts",
    "credit",
    "loss_value",
    "select",
    "shares",
    "surrogate",
    "units",
    "values",
    "weights",
]
