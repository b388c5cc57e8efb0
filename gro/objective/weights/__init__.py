"""Weights w(u, A): how strongly a completion still pulls, given how far it is from its anchor.

Every weight is called as `weight(u, v, a, u2)`, all broadcastable: u = measure − anchor, v = v(A), a = A and u2 the
comparison with the term's second anchor.  Nothing in here carries a gradient.  `potential` is the antiderivative:
moving u and u2 together by dℓ changes it by −w·v dℓ, so the sum of share · potential is the *value* of the paper's
loss.  Weights whose paper detaches the ratio have none.

s is sign(v) for clips, which come from min(r·v, clip(r)·v), and sign(A) for separation.
"""

from __future__ import annotations

from gro.objective.weights.base import Weight
from gro.objective.weights.preferences import (
    Bell,
    BiasedLogistic,
    Exo,
    Exponential,
    Hinge,
    Ipo,
    Logistic,
    Nca,
    Regression,
    RobustLogistic,
    Savage,
    Squared,
    TruncatedQuadratic,
)
from gro.objective.weights.pulls import K1, K2, K3, RatioK3, SampledEntropy, Stay
from gro.objective.weights.ratios import ClippedRatio, One, Ratio, SoftGate, TruncatedRatio
from gro.objective.weights.separation import Corrected, Separation

__all__ = [
    "K1",
    "K2",
    "K3",
    "Bell",
    "BiasedLogistic",
    "ClippedRatio",
    "Corrected",
    "Exo",
    "Exponential",
    "Hinge",
    "Ipo",
    "Logistic",
    "Nca",
    "One",
    "Ratio",
    "RatioK3",
    "Regression",
    "RobustLogistic",
    "SampledEntropy",
    "Savage",
    "Separation",
    "SoftGate",
    "Squared",
    "Stay",
    "TruncatedQuadratic",
    "TruncatedRatio",
    "Weight",
    "plain",
]

plain = One()
