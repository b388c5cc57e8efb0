"""Means and shares with their intervals, against other ways to the same numbers."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.evaluation.estimates import mean, proportion


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilsons_interval_are_the_shares_at_which_the_score_test_is_at_its_limit(n: int, share: float) -> None:
    wins = round(share * n * 2) / 2
    found = proportion(wins, n)
    assert found.low is not None
    assert found.high is not None
    z = NormalDist().inv_cdf(0.975)
    for p0 in (found.low, found.high):
        assert abs(wins / n - p0) == pytest.approx(z * math.sqrt(p0 * (1 - p0) / n), abs=1e-7)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_a_known_interval() -> None:
    """81 of 263, Agresti and Coull 1998's kind of example, by the closed form in a reference implementation."""
    found = proportion(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert found.method == "Wilson"


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, p, held = random.Random(0), 0.3, 0
    for _ in range(2000):
        found = proportion(sum(draw.random() < p for _ in range(40)), 40)
        held += found.low is not None and found.high is not None and found.low <= p <= found.high
    assert 0.93 < held / 2000 < 0.97


def test_means() -> None:
    found = mean([1.0, 2.0, 3.0, 6.0])
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert found.value == 3
    assert found.low == pytest.approx(3 - 1.959963984540054 * deviation / 2)
    assert found.high == pytest.approx(3 + 1.959963984540054 * deviation / 2)
    assert found.method == "normal"
    assert mean([0.0, 1.0, 1.0]) == proportion(2, 3)
    assert mean([2.5]).low is None
    assert math.isnan(mean([]).value)
    assert math.isnan(proportion(0, 0).value)
