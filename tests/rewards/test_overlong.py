"""The soft punishment of overlong answers, at the lengths of its paper."""

from __future__ import annotations

import math

import pytest

from gro.errors import GroError
from gro.rewards.loading import load
from gro.rewards.overlong import overlong


def test_the_papers_lengths() -> None:
    lengths = [0, 16384, 16385, 18432, 20480, 20481]
    found = overlong([""] * 6, [range(n) for n in lengths], limit=20480, cache=4096)
    assert found == [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0]
    assert math.copysign(1, overlong([""], [[1]], limit=9, cache=1)[0]) == 1, "0, and not −0"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"limit": 5}, "give limit and cache"),
        ({"limit": 5, "cache": 6}, r"cache \(6\) is more than limit \(5\)"),
        ({"limit": 5, "cache": 0}, "cache must be above 0"),
        ({"limit": "5", "cache": 1}, "limit is a finite number"),
        ({"limt": 5, "cache": 1}, "no parameter 'limt'; did you mean 'limit'"),
    ],
)
def test_what_is_refused(params: dict[str, object], words: str) -> None:
    with pytest.raises(GroError, match=words):
        load("overlong", params)
