"""Units and values on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gro.objective.units import Discounted, average, log_odds, token, total
from gro.objective.values import (
    Above,
    Desirability,
    Exp,
    Expm1,
    Prospect,
    identity,
    one,
    positive,
    relu,
)

LOGP_BT = torch.tensor([[-1.0, math.nan, -2.0, -4.0], [math.inf, -0.5, math.nan, 7.0]], dtype=torch.float64)
MASK_BT = torch.tensor([[True, False, True, True], [False, True, False, False]])
EMPTY_BT = torch.zeros_like(MASK_BT)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (token, [[-1, 0, -2, -4], [0, -0.5, 0, 0]]),
        (total, [[-7], [-0.5]]),
        (average, [[-7 / 3], [-0.5]]),
        (Discounted(1.0), [[-7], [-0.5]]),
        (Discounted(0.5), [[-1 - 2 / 2 - 4 / 4], [-0.5]]),  # the place among the trained tokens counts, not the column
        (log_odds, [[-7 / 3 - math.log(1 - math.exp(-7 / 3))], [-0.5 - math.log(1 - math.exp(-0.5))]]),
    ],
    ids=repr,
)
def test_units_skip_what_carries_no_loss(unit, expected):
    assert unit(LOGP_BT, MASK_BT).tolist() == [pytest.approx(row) for row in expected]


@pytest.mark.fault("N4")
@pytest.mark.parametrize("unit", [token, total, average, Discounted(0.5), log_odds], ids=repr)
def test_units_of_nothing_are_finite_and_pull_nothing(unit):
    leaf_BT = LOGP_BT.clone().requires_grad_()
    phi_BX = unit(leaf_BT, EMPTY_BT)
    assert bool(phi_BX.isfinite().all())
    (gradient_BT,) = torch.autograd.grad(phi_BX.sum(), leaf_BT)
    assert not bool(gradient_BT.any())


def test_odds_of_certainty_are_finite():
    leaf_BT = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    odds_B1 = log_odds(leaf_BT, torch.ones(1, 2, dtype=torch.bool))
    assert odds_B1.item() == pytest.approx(math.log((1 - 1e-6) / 1e-6), abs=1e-6)
    (gradient_BT,) = torch.autograd.grad(odds_B1.sum(), leaf_BT)
    assert bool(gradient_BT.isfinite().all())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (identity, [-2, -0.5, 0, 0.5, 2]),
        (one, [1, 1, 1, 1, 1]),
        (relu, [0, 0, 0, 0.5, 2]),
        (Above(0.5), [0, 0, 0, 0, 1]),
        (Above(-1.0), [0, 1, 1, 1, 1]),
        (Exp(0.5), [math.exp(-4), math.exp(-1), 1, math.exp(1), math.exp(4)]),
        (Exp(0.5, cap=20.0), [math.exp(-4), math.exp(-1), 1, math.exp(1), 20]),
        (Expm1(2.0), [math.expm1(-1), math.expm1(-0.25), 0, math.expm1(0.25), math.expm1(1)]),
        (Prospect(0.5, 3.0), [-3 * math.sqrt(2), -3 * math.sqrt(0.5), 0, math.sqrt(0.5), math.sqrt(2)]),
        (Desirability(2.0, 3.0), [-3, -3, 0, 2, 2]),
    ],
    ids=repr,
)
def test_values(value, expected):
    advantage_B1 = torch.tensor([[-2.0], [-0.5], [0.0], [0.5], [2.0]], dtype=torch.float64)
    assert value(advantage_B1).shape == (5, 1)
    assert value(advantage_B1)[:, 0].tolist() == pytest.approx(expected)
    assert value(advantage_B1.float()).dtype == torch.float32


def test_what_is_divided_by_must_be_positive():
    positive(beta=0.1, eta=3.0)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"eta is .*; it must be above 0"):
            positive(beta=1.0, eta=wrong)
