"""Sources are functions of the step: orders, shares and keys worked out by hand."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scripted_rollouts import ScriptedEngine, keys, online, rows

from gro.training.sources import Mixture, Offline, apportion, permutation


def test_the_order_is_the_same_on_every_machine() -> None:
    # Computed once by an independent scalar splitmix64 (below); a change would break every resumed run.
    assert permutation(8, seed=0, epoch=0).tolist() == _reference_permutation(8, 0, 0)
    assert permutation(50, seed=-3, epoch=7).tolist() == _reference_permutation(50, -3, 7)


def _reference_permutation(n: int, seed: int, epoch: int) -> list[int]:
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = mix(mix(seed & mask) ^ epoch)
    return sorted(range(n), key=lambda i: mix(mix(i) ^ key))


def test_every_row_once_per_epoch_and_another_order_in_the_next() -> None:
    source = Offline(rows(10), per_step=4, seed=1)
    taken = [keys(source.take(step)) for step in range(5)]
    flat = [key for step in taken for key in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert flat[:10] == permutation(10, 1, 0).tolist()
    # A function of the step alone: any order of asking, and a new source, give the same.
    again = Offline(rows(10), per_step=4, seed=1)
    assert [keys(again.take(step)) for step in (4, 0, 3, 2, 1)] == [taken[s] for s in (4, 0, 3, 2, 1)]
    assert keys(Offline(rows(10), per_step=10, seed=2).take(0)) != flat[:10]


def test_permutations_look_random() -> None:
    counts = Counter(permutation(6, seed, epoch).tolist()[0] for seed in range(60) for epoch in range(20))
    # 1200 draws over 6 rows: 200 ± 13; ten standard deviations are a bug.
    assert all(70 < counts[i] < 330 for i in range(6))
    assert len({tuple(permutation(6, s, 0).tolist()) for s in range(200)}) > 150


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 300))
def test_shares_are_kept_as_closely_as_whole_numbers_can(weights: list[int], total: int) -> None:
    shares = [Fraction(w, sum(weights)) for w in weights]
    counts, more = apportion(total, shares), apportion(total + 1, shares)
    assert sum(counts) == total
    assert sorted(b - a for a, b in zip(counts, more, strict=True)) == [0] * (len(weights) - 1) + [1]
    # Webster's own definition: the groups that are due first, one by one.
    slow = [0] * len(weights)
    for _ in range(total):
        due = min(range(len(shares)), key=lambda k: (Fraction(2 * slow[k] + 1, 2) / shares[k], k))
        slow[due] += 1
    assert counts == slow
    assert all(abs(c - total * s) <= Fraction(len(weights), 2) for c, s in zip(counts, shares, strict=True))
    if total % sum(weights) == 0:
        assert counts == [total * s for s in shares]


def test_a_quarter_of_every_batch_is_demonstrations() -> None:
    engine = ScriptedEngine()
    source = Mixture([(online(20, engine), 0.75), (Offline(rows(6, "file"), 1, seed=9), 0.25)], per_step=8)
    for step in range(6):
        groups = source.take(step)
        assert [g.prompt.row["from"] for g in groups] == ["online"] * 6 + ["file"] * 2
    # Each part goes on where it was, whatever its own portion per step: 12 rows are two epochs of 6.
    taken = [g.prompt.key for step in range(6) for g in source.take(step) if g.prompt.row["from"] == "file"]
    assert taken == permutation(6, 9, 0).tolist() + permutation(6, 9, 1).tolist()
    assert engine.calls[0][0] == permutation(20, 5, 0).tolist()[:6]


def test_shares_that_do_not_come_out_even() -> None:
    source = Mixture([(Offline(rows(5, "a"), 1), 2), (Offline(rows(5, "b"), 1), 1)], per_step=4)
    names = ["".join(g.prompt.row["from"] for g in source.take(step)) for step in range(6)]
    # Due at ¾, 2¼, 3¾, 5¼, … for a and 1½, 4½, … for b: a b a a b a | per 3 numbers 2 and 1.
    assert names == ["aaab", "aabb", "aaab"] * 2
    assert Counter("".join(names)) == {"a": 16, "b": 8}


def test_a_mixture_of_mixtures() -> None:
    inner = Mixture([(Offline(rows(40, "a"), 1), 1), (Offline(rows(40, "b"), 1), 1)], per_step=3)
    outer = Mixture([(inner, 0.5), (Offline(rows(40, "c"), 1), 0.5)], per_step=8)
    counts = Counter(g.prompt.row["from"] for step in range(5) for g in outer.take(step))
    assert counts == {"a": 10, "b": 10, "c": 20}
    seen = [g.prompt.key for step in range(5) for g in outer.take(step) if g.prompt.row["from"] == "a"]
    assert len(set(seen)) == 10
    versions = ScriptedEngine()
    Mixture([(Mixture([(online(3, versions), 1)], 1), 1)], 1).receive(None, 0)
    assert versions.versions == [1]


def test_shares_that_no_binary_fraction_is() -> None:
    source = Mixture([(Offline(rows(9, "a"), 1), 0.1), (Offline(rows(9, "b"), 1), 0.9)], per_step=10)
    for step in range(300):
        assert sum(g.prompt.row["from"] == "a" for g in source.take(step)) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Offline([], 1),
        lambda: Offline(rows(1), 0),
        lambda: online(1, ScriptedEngine(), group_size=0),
        lambda: Mixture([], 1),
        lambda: Mixture([(Offline(rows(1), 1), 0)], 1),
        lambda: Mixture([(Offline(rows(1), 1), float("nan"))], 1),
        lambda: Mixture([(Offline(rows(1), 1), 1)], 0),
    ],
)
def test_what_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"at least|weights"):
        make()
