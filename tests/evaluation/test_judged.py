"""Scores of pairs → accuracy, calibration and the part that length plays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.evaluation.judged import JudgedPair, calibration, calibration_error, measure, spearman


def pair(gap: float, longer: int = 0, part: str = "") -> JudgedPair:
    return JudgedPair(0.5 + gap, 0.5, 10 + longer, 10, part)


def test_numbers_by_hand():
    found = measure([pair(2.0, 3, "a"), pair(-1.0, -2, "a"), pair(0.0, 1, "b"), pair(1.0, -5, "b")])
    assert found["accuracy"].value == 2.5 / 4
    assert found["accuracy_longer"].value == 2 / 4
    assert found["accuracy/chosen_longer"].value == 1.5 / 2
    assert found["accuracy/chosen_shorter"].value == 1 / 2
    assert found["accuracy/a"].value == 1 / 2
    assert found["accuracy/b"].value == 1.5 / 2
    losses = [math.log(1 + math.exp(-g)) for g in (2.0, -1.0, 0.0, 1.0)]
    assert found["loss"].value == pytest.approx(sum(losses) / 4, abs=1e-12)
    assert found["margin"].value == 0.5
    # gaps 2 −1 0 1 have ranks 4 1 2 3, length differences 3 −2 1 −5 ranks 4 2 3 1: 1 − 6·6/(4·15)
    assert found["length_correlation"].value == pytest.approx(1 - 6 * 6 / 60)
    low, high = found["accuracy"].low, found["accuracy"].high
    assert low is not None
    assert high is not None
    assert low < 0.625 < high


def test_calibration_by_hand():
    sure = math.log(0.97 / 0.03)  # σ(gap) = .97: the last of ten bins
    unsure = math.log(0.52 / 0.48)
    bins = calibration([pair(sure)] * 3 + [pair(-sure)] + [pair(unsure), pair(-unsure)])
    assert [(b.pairs, round(b.predicted, 6), b.observed.value) for b in bins] == [(2, 0.52, 0.5), (4, 0.97, 0.75)]
    assert calibration_error(bins) == pytest.approx((2 * 0.02 + 4 * 0.22) / 6)


def test_a_huge_gap_is_finite():
    found = measure([pair(1e4), pair(-1e4)])
    assert found["accuracy"].value == 0.5
    assert found["loss"].value == pytest.approx(5e3)
    assert found["calibration_error"].value == pytest.approx(0.5)


def test_nothing_to_measure():
    assert measure([]) == {}


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_loss_does_not_depend_on_the_zero_of_the_scores(gaps: list[float]):
    here = measure([pair(g) for g in gaps])
    there = measure([JudgedPair(7 + g, 7, 10, 10) for g in gaps])
    assert here["loss"].value == pytest.approx(there["loss"].value, abs=1e-9)


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=20))
def test_rank_correlation_knows_order_only(points: list[tuple[int, int]]):
    x, y = [float(a) for a, _ in points], [float(b) for _, b in points]
    found = spearman(x, y)
    if math.isnan(found):
        assert len(set(x)) == 1 or len(set(y)) == 1
        return
    assert spearman([math.exp(a) for a in x], [b**3 for b in y]) == pytest.approx(found, abs=1e-12)
    assert spearman(x, [-b for b in y]) == pytest.approx(-found, abs=1e-12)
    assert -1 - 1e-12 <= found <= 1 + 1e-12
