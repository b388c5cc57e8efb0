"""The baseline of words."""

from __future__ import annotations

import random

import pytest

from gro.evaluation.bag_of_words import available, bag_of_words_gaps

pytestmark = pytest.mark.skipif(not available(), reason="scikit-learn is not installed")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far"]


def pairs(n: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)

    def text(*extra: str) -> str:
        return " ".join(rng.sample([*rng.choices(WORDS, k=8), *extra], 8 + len(extra)))

    return [(text("sorry"), text("sure")) for _ in range(n)]


def test_a_word_that_decides_is_found_and_its_absence_is_chance():
    gaps = bag_of_words_gaps(pairs(200, 0), pairs(50, 1))
    assert all(gap > 0 for gap in gaps)
    flat = [(a.replace("sorry", ""), b.replace("sure", "")) for a, b in pairs(300, 2)]
    assert 0.25 < sum(gap > 0 for gap in bag_of_words_gaps(flat[:200], flat[200:])) / 100 < 0.75


def test_turning_a_pair_round_flips_the_sign():
    train, test = pairs(100, 3), pairs(20, 4)
    there = bag_of_words_gaps(train, test)
    back = bag_of_words_gaps(train, [(b, a) for a, b in test])
    assert back == pytest.approx([-gap for gap in there], abs=1e-12)
