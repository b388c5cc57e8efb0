"""The mathematics of a trust region, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gro.objective.estimator import TrustRegion
from gro.training.natural_gradient import backtrack, conjugate_gradient, fisher_product, kl, longest_step


def test_three_arms_by_hand():
    """Values from an independent computation: the first step is rejected, the second taken."""
    z = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64)
    a = torch.tensor([0.868579, -0.131421, -0.631421], dtype=torch.float64)
    p = z.softmax(0)
    g = p * (a - (p * a).sum())
    assert g.tolist() == pytest.approx([0.293219, -0.032867, -0.260352], abs=1e-6)

    def product(v: Tensor) -> Tensor:
        return fisher_product(lambda z: z[None], z, v, torch.ones(1))

    x, residual = conjugate_gradient(product, g, 10)
    assert residual < 1e-9
    assert x.tolist() == pytest.approx([0.833333, -0.166667, -0.666667], abs=2e-6)
    step = longest_step(x, x.dot(product(x)).item(), 0.01)
    assert step.tolist() == pytest.approx([0.181118, -0.036224, -0.144894], abs=1e-6)
    seen = []

    def measure(scale: float) -> tuple[float, float]:
        new = z + scale * step
        seen.append(kl(z.log_softmax(0)[None], new.log_softmax(0)[None]).item())
        return seen[-1], (((new.softmax(0) - p) * a).sum()).item()

    trial = backtrack(measure, TrustRegion(delta=0.01))
    assert seen == pytest.approx([0.01017251, 0.00649124], abs=1e-8)
    assert (trial.scale, trial.backtracks, trial.kl) == (0.8, 1, seen[1])
    assert trial.improvement == pytest.approx(0.07512473, abs=1e-6)


def test_conjugate_gradient_solves_and_tells_what_is_left():
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix, g = root @ root.T + 0.1 * torch.eye(6), torch.randn(6, dtype=torch.float64)
    x, residual = conjugate_gradient(lambda v: matrix @ v, g, 6)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, g), rtol=1e-8, atol=1e-8)
    assert residual < 1e-8
    x, residual = conjugate_gradient(lambda v: matrix @ v, g, 3)
    assert residual == pytest.approx(float((g - matrix @ x).norm() / g.norm()))
    assert residual > 1e-3


def test_conjugate_gradient_stops_when_nothing_is_left():
    calls = []

    def twice(v: Tensor) -> Tensor:
        calls.append(v)
        return 2 * v

    x, residual = conjugate_gradient(twice, torch.tensor([4.0, 2.0]), 10)
    assert (x.tolist(), residual, len(calls)) == ([2.0, 1.0], 0.0, 1)
    x, residual = conjugate_gradient(twice, torch.zeros(2), 10)
    assert (x.tolist(), residual, len(calls)) == ([0.0, 0.0], 0.0, 1)


def test_a_step_is_taken_only_if_it_is_inside_and_improves():
    region = TrustRegion(delta=1.0, backtrack=0.5, backtracks=5)
    # Too far, not finite, no better, then good.
    outcomes = iter([(2.0, 1.0), (math.nan, 1.0), (0.5, 0.0), (1.0, 0.25), (0.1, 9.0)])
    trial = backtrack(lambda scale: next(outcomes), region)
    assert (trial.scale, trial.kl, trial.improvement, trial.backtracks) == (0.125, 1.0, 0.25, 3)
    scales = []

    def never(scale: float) -> tuple[float, float]:
        scales.append(scale)
        return 0.0, -1.0

    trial = backtrack(never, region)
    assert (trial.scale, trial.kl, trial.improvement, trial.backtracks) == (0.0, 0.0, 0.0, 5)
    assert scales == [1, 0.5, 0.25, 0.125, 0.0625]
