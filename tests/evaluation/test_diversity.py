"""Diversity, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from gro.evaluation.diversity import distinct, ngrams, self_overlap, unique


def test_ngrams() -> None:
    assert ngrams([1, 2, 1, 2], 2) == {(1, 2): 2, (2, 1): 1}
    assert ngrams([1], 2) == {}


def test_distinct() -> None:
    samples = [[1, 2, 1], [1, 2, 3]]
    assert distinct(samples, 1) == (3, 6)
    assert distinct(samples, 2) == (3, 4)
    assert distinct(samples, 4) == (0, 0)


def test_self_overlap() -> None:
    assert self_overlap([[1, 2, 3, 4, 5]] * 3) == 1
    assert self_overlap([[1, 2], [3, 4]]) == 0
    # [1 1 2]: of 1 1 2 the other has one 1 and the 2: 2/3; of (1 1) (1 2) one: 1/2; of (1 1 2) none.
    # [1 2]: both tokens and (1 2) are in the first: 1 and 1.
    assert self_overlap([[1, 1, 2], [1, 2]]) == pytest.approx(((2 / 3 + 1 / 2 + 0) / 3 + 1) / 2)
    # The other that has an n-gram most often counts, not all together.
    assert self_overlap([[1, 1], [1, 2], [1, 3]]) == pytest.approx(((1 / 2 + 0) / 2 + (1 / 2 + 0) / 2 * 2) / 3)
    assert self_overlap([[1], []]) is None


def test_unique() -> None:
    assert unique([[1, 2], [1, 2], [2], []]) == 3
