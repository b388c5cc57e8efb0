"""Every weight's potential is its antiderivative, so the value of a loss belongs to its gradient."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gro.objective import Anchor, anchors, credit, shares, units, values, weights
from gro.objective.weights import (
    K2,
    K3,
    Bell,
    BiasedLogistic,
    ClippedRatio,
    Corrected,
    Exo,
    Exponential,
    Hinge,
    Ipo,
    Logistic,
    Nca,
    One,
    Ratio,
    RatioK3,
    Regression,
    RobustLogistic,
    SampledEntropy,
    Savage,
    Separation,
    SoftGate,
    Squared,
    Stay,
    TruncatedQuadratic,
    TruncatedRatio,
    Weight,
)

beta = st.floats(0.05, 2)
share = st.floats(0, 0.45)
WITH_POTENTIAL: dict[type, st.SearchStrategy[Weight]] = {
    One: st.just(One()),
    Ratio: st.just(Ratio()),
    ClippedRatio: st.builds(
        ClippedRatio, low=st.floats(0.01, 0.9), high=st.floats(0.01, 2), dual=st.one_of(st.none(), st.floats(3, 9))
    ),
    SoftGate: st.builds(SoftGate, positive=beta, negative=beta),
    Logistic: st.builds(Logistic, beta=beta, smoothing=share),
    RobustLogistic: st.builds(RobustLogistic, beta=beta, flip=share),
    BiasedLogistic: st.builds(BiasedLogistic, beta=beta, bias=st.floats(0.1, 1)),
    Exo: st.builds(Exo, beta=beta, smoothing=st.floats(1e-4, 0.45)),
    Hinge: st.builds(Hinge, beta=beta),
    Squared: st.builds(Squared, beta=beta),
    Ipo: st.builds(Ipo, beta=beta),
    Exponential: st.builds(Exponential, beta=beta),
    TruncatedQuadratic: st.builds(TruncatedQuadratic, beta=beta),
    Savage: st.builds(Savage, beta=beta),
    Bell: st.builds(Bell, beta=beta),
    Nca: st.builds(Nca, beta=beta),
    Regression: st.builds(Regression, eta=beta),
    K2: st.builds(K2, beta=beta),
    K3: st.builds(K3, beta=beta),
    RatioK3: st.builds(RatioK3, beta=beta),
    SampledEntropy: st.builds(SampledEntropy, coefficient=beta),
    Stay: st.builds(Stay, beta=beta),
    Separation: st.builds(Separation, kappa=st.floats(0.05, 20), margin=st.floats(-1, 1)),
}
WITHOUT = {TruncatedRatio, Corrected}
REFUSED = {weights.K1}


def classes(module: ModuleType) -> set[type]:
    """The slot's members: what the module itself defines and can be called."""
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__.startswith(module.__name__)]
    return {c for c in own if is_dataclass(c) and "__call__" in vars(c)}


def test_no_weight_is_forgotten():
    assert classes(weights) | REFUSED == set(WITH_POTENTIAL) | WITHOUT | REFUSED


def number(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def kinks(weight: Weight) -> list[float]:
    """Where u has a corner, at which there is no derivative to compare with."""
    if isinstance(weight, ClippedRatio):
        return [math.log(x) for x in (1 - weight.low, 1 + weight.high, weight.dual or 1.0)]
    return [1 / weight.beta, -1 / weight.beta] if isinstance(weight, Hinge) else []


@pytest.mark.parametrize("kind", WITH_POTENTIAL, ids=lambda kind: kind.__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999))
def test_the_potential_is_the_antiderivative(kind: type, data: st.DataObject, seed: int):
    weight = data.draw(WITH_POTENTIAL[kind])
    random = torch.Generator().manual_seed(seed)
    u, u2, v, a = 10 * torch.rand(4, 500, generator=random, dtype=torch.float64) - 5
    for kink in kinks(weight):
        u = torch.where((u - kink).abs() < 1e-6, u + 1e-3, u)
    move = torch.zeros(500, dtype=torch.float64, requires_grad=True)
    potential = weight.potential(u + move, v, a, u2 + move)
    assert potential is not None
    (slope,) = torch.autograd.grad(potential.sum(), move)
    torch.testing.assert_close(slope, -weight(u, v, a, u2) * v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weight", [TruncatedRatio(5.0), Corrected(Separation())])
def test_a_detached_ratio_has_no_potential(weight):
    assert weight.potential(number(0.1), number(1), number(1), number(0)) is None


@pytest.mark.parametrize("weight", [K2(0.3), K3(0.3), Stay(0.3), Separation(3.0, 0.2)])
def test_nothing_is_infinite_far_away(weight):
    for u in (-1e3, -30.0, 30.0, 1e3):
        for result in (weight(*map(number, (u, 1, 1, u))), weight.potential(*map(number, (u, 1, 1, u)))):
            assert bool(result.isfinite().all())


@pytest.mark.parametrize("module", [anchors, credit, shares, units, values, weights], ids=lambda m: m.__name__)
def test_every_slot_member_has_a_symbol(module):
    members = classes(module)
    assert members
    for member in members:
        assert isinstance(member.symbol, str | property), member  # a property where it depends on the fields
        assert member.symbol, member
        assert member.__doc__, member


def test_composed_symbols():
    assert (Logistic(0.5).symbol, Logistic(0.5, 0.1).symbol) == ("βσ(−βsu)", "β(σ(−βsu) − α)")
    assert (Separation(3).symbol, Separation(3, 0.1).symbol) == ("2σ(−κsu)", "σ(−κ(su − m))/σ(κm)")
    assert credit.MovingAverage(kl=0.1).symbol == "R_to-go − mean of earlier steps"
    assert Corrected(Ratio()).symbol == "r·r"
    assert Anchor("ref", (anchors.partner, anchors.margin(0.3))).symbol == "ref + partner + s·m"
    assert Anchor().symbol == "0"
