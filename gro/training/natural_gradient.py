"""The mathematics of a trust region: products with the Fisher matrix, conjugate gradient, the line search.

Pure functions (Schulman et al. 2015, appendix C); the policy comes in as a function of its weights.

P  weights as one vector     M  tokens     V  vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gro.objective.estimator import TrustRegion

TOLERANCE = 1e-10
"""Conjugate gradient stops once the residual is this small beside the gradient: what is left is rounding."""

Product = Callable[[Tensor], Tensor]
"""v_P ↦ (matrix · v)_P."""


def conjugate_gradient(product: Product, g_P: Tensor, steps: int) -> tuple[Tensor, float]:
    """(x with H·x ≈ g after at most so many steps, ‖g − H·x‖/‖g‖) for a symmetric positive H (Hestenes & Stiefel)."""
    assert g_P.ndim == 1
    x_P = torch.zeros_like(g_P)
    residual_P, direction_P = g_P.clone(), g_P.clone()
    start = square = residual_P.dot(residual_P)
    for _ in range(steps):
        if square <= TOLERANCE**2 * start:
            break
        bent_P = product(direction_P)
        length = square / direction_P.dot(bent_P)
        x_P += length * direction_P
        residual_P -= length * bent_P
        before, square = square, residual_P.dot(residual_P)
        direction_P = residual_P + (square / before) * direction_P
    return x_P, math.sqrt(square / start) if start > 0 else 0.0


def fisher_product(logits: Callable[[Tensor], Tensor], at_P: Tensor, v_P: Tensor, weight_M: Tensor) -> Tensor:
    """Σ_m weight_m · J_mᵀ(diag(p_m) − p_m p_mᵀ)J_m · v, J the Jacobian of `logits`: [P] ↦ [M, V] at this point."""
    assert at_P.shape == v_P.shape
    z_MV, change_MV = torch.func.jvp(logits, (at_P,), (v_P,))  # type: ignore[misc]
    p_MV = z_MV.softmax(-1)
    bent_MV = p_MV * (change_MV - (p_MV * change_MV).sum(-1, keepdim=True)) * weight_M[:, None].to(z_MV)
    _, pull_back = torch.func.vjp(logits, at_P)  # type: ignore[misc]
    return pull_back(bent_MV)[0]


def longest_step(x_P: Tensor, curved: float, delta: float) -> Tensor:
    """x scaled to where the second-order KL, ½·stepᵀF·step, is δ; `curved` is xᵀFx."""
    return x_P * math.sqrt(2 * delta / curved)


def kl(old_MV: Tensor, new_MV: Tensor) -> Tensor:
    """[M] KL(old‖new) of the whole distributions, from their log-probs."""
    assert old_MV.shape == new_MV.shape
    return (old_MV.exp() * (old_MV - new_MV)).sum(-1)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a step would do, or has done."""

    scale: float
    """Of the longest step; 0 where none was good."""
    kl: float
    """Exact mean KL(old‖θ) per token of the samples."""
    improvement: float
    """By how much the loss is lower."""
    backtracks: int
    """How often the step was shortened."""


def backtrack(measure: Callable[[float], tuple[float, float]], region: TrustRegion) -> Trial:
    """The first of the scales 1, b, b², … at which the loss improves and the KL is at most δ; scale 0 if none is.

    measure: scale ↦ (mean KL(old‖θ), improvement of the loss).  NaN is not good.
    """
    for j in range(region.backtracks):
        scale = region.backtrack**j
        distance, improvement = measure(scale)
        if improvement > 0 and distance <= region.delta:
            return Trial(scale, distance, improvement, j)
    return Trial(0.0, 0.0, 0.0, region.backtracks)
