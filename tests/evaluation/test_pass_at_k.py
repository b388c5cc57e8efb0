"""pass@k, against all subsets counted one by one."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.evaluation.estimates import Estimate, proportion, ratio
from gro.evaluation.pass_at_k import estimate, pass_at_k


def test_by_hand() -> None:
    assert [pass_at_k(5, 2, k) for k in (1, 2, 3)] == pytest.approx([0.4, 0.7, 0.9])
    assert pass_at_k(5, 2, 4) == 1
    assert pass_at_k(5, 0, 5) == 0


@given(samples=st.lists(st.booleans(), min_size=1, max_size=8), data=st.data())
def test_it_is_the_share_of_subsets(samples: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    counted = fmean(float(any(subset)) for subset in combinations(samples, k))
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(counted)


def test_over_prompts() -> None:
    found = estimate([[True, True, False, False, False], [False] * 5, [True]], 2)
    assert found.value == pytest.approx(0.35), "the prompt with one sample has no part in pass@2"
    assert (found.low, found.high) == pytest.approx((0.0, 0.7))
    assert found.method == "bootstrap"
    assert estimate([[True]], 1) == Estimate(1.0)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="takes at least 3 samples, found 2"):
        pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="3 of 2 samples"):
        pass_at_k(2, 3, 1)


def test_a_ratio_over_clusters() -> None:
    """100 prompts whose 8 samples are all alike: the interval is that of 100 draws, not of 800."""
    right = [float(i % 10 < 3) * 8 for i in range(100)]
    found, few, many = ratio(right, [8.0] * 100), proportion(30, 100), proportion(240, 800)
    assert found.value == 0.3
    assert found.low is not None
    assert few.low is not None
    assert many.low is not None
    assert found.low == pytest.approx(few.low, abs=0.015)
    assert found.low < many.low - 0.04
    assert ratio(right, [8.0] * 100) == found, "the same noise at every call"


def test_a_ratio_weighs_its_clusters() -> None:
    assert ratio([1.0, 9.0], [1.0, 3.0]).value == 2.5
    assert ratio([1.0, 0.0], [2.0, 0.0]) == Estimate(0.5), "an empty cluster is none"
    with pytest.raises(ValueError, match="2 numerators for 1"):
        ratio([1.0, 2.0], [1.0])
