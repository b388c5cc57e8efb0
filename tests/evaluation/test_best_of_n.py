"""Best-of-n, against all subsets counted one by one."""

from __future__ import annotations

import math
import random
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.evaluation.best_of_n import best, best_of_n, curve, kl_bon, worst

PROXY, GOLD = [1.0, 4.0, 2.0, 3.0], [0.1, 0.9, 0.4, 0.3]


def counted(proxy: list[float], gold: list[float], n: int) -> float:
    """The mean over all subsets of n of the mean gold of those with the subset's highest proxy."""
    means = []
    for subset in combinations(range(len(proxy)), n):
        highest = max(proxy[i] for i in subset)
        means.append(fmean(gold[i] for i in subset if proxy[i] == highest))
    return fmean(means)


def test_by_hand() -> None:
    found = [best_of_n(PROXY, n, GOLD) for n in range(1, 5)]
    assert found == pytest.approx([0.425, 0.61666667, 0.75, 0.9], abs=1e-8)
    assert best_of_n(PROXY, 2) == pytest.approx((4 * 3 + 3 * 2 + 2) / 6)


def test_kl() -> None:
    expected = [0.19314718, 0.63629436, 1.83508872, 3.17450808, 5.90875528]
    assert [kl_bon(n) for n in (2, 4, 16, 64, 1000)] == pytest.approx(expected, abs=1e-8)
    assert kl_bon(1) == 0
    with pytest.raises(ValueError, match="at least 1, found 0"):
        kl_bon(0)


def test_kl_is_that_of_the_distribution_that_best_of_n_makes() -> None:
    """Of V equally likely answers, all with other rewards, best-of-n gives the r-th (r/V)ⁿ − ((r−1)/V)ⁿ."""
    v, n = 20000, 8
    chances = [(r / v) ** n - ((r - 1) / v) ** n for r in range(1, v + 1)]
    assert math.fsum(p * math.log(p * v) for p in chances if p > 0) == pytest.approx(kl_bon(n), abs=1e-3)
    # With only two rewards, each of half of the answers, the true KL is far below: the bound is only a bound.
    low = 0.5**n
    tied = low * math.log(2 * low) + (1 - low) * math.log(2 * (1 - low))
    assert tied < kl_bon(n) - 0.4


@given(
    proxy=st.lists(st.integers(0, 3).map(float), min_size=1, max_size=7),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_ties_are_exact(proxy: list[float], seed: int, data: st.DataObject) -> None:
    draw = random.Random(seed)
    gold = [draw.random() for _ in proxy]
    n = data.draw(st.integers(1, len(proxy)))
    assert best_of_n(proxy, n, gold) == pytest.approx(counted(proxy, gold, n), abs=1e-12)


def test_it_is_unbiased() -> None:
    """Over many draws of 6 samples, the estimate at n = 3 has the mean of the best of 3 uniform numbers, 3/4."""
    draw = random.Random(0)
    found = [best_of_n([draw.random() for _ in range(6)], 3) for _ in range(4000)]
    assert fmean(found) == pytest.approx(0.75, abs=0.01)
    naive = [max(draw.random() for _ in range(6)) for _ in range(4000)]
    assert fmean(naive) > 0.84, "the best of all six is another quantity"


def test_what_failed_is_left_out() -> None:
    assert best_of_n([1.0, None, 3.0], 2) == 3
    assert best_of_n([1.0, None, 3.0], 1) == 2
    assert best_of_n([-1.0, None, -3.0], 2) == -1, "no 0"
    assert best_of_n([1.0, 2.0, 3.0], 1, [5.0, 7.0, None]) == 6
    assert math.isnan(best_of_n([1.0, None, 3.0], 3))
    with pytest.raises(ValueError, match="a reward that failed is None"):
        best_of_n([1.0, math.nan], 1)


def test_many_samples() -> None:
    """C(4096, 1024) has more than 900 digits."""
    assert best_of_n([float(i) for i in range(1, 4097)], 1024) == pytest.approx(1024 / 1025 * 4097)


def test_curve() -> None:
    points = curve([PROXY, [0.0, 2.0, None, 1.0]], [GOLD, [0.2, 0.6, 0.0, 0.4]])
    assert [p.n for p in points] == [1, 2, 4]
    assert [p.prompts for p in points] == [2, 2, 1]
    assert points[0].reward.value == pytest.approx((0.425 + 0.4) / 2)
    assert points[1].reward.value == pytest.approx((0.61666667 + (0.6 + 0.6 + 0.4) / 3) / 2)
    assert points[2].reward.value == pytest.approx(0.9)
    assert points[1].kl == kl_bon(2)
    assert [p.n for p in curve([[1.0] * 6])] == [1, 2, 4, 6]
    assert curve([[None], []]) == []


def test_the_best_and_the_worst() -> None:
    rewards = [None, 2.0, 5.0, -1.0, 5.0, -1.0]
    assert (best(rewards), worst(rewards)) == (2, 3)
    assert best([None]) is None
    assert worst([]) is None
