"""Packs hold every scored token once, under the budget, and say where it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gro.policy.packing import Pack, RowsPack, SharedPack, pack
from gro.policy.plans import Tree
from gro.types import Completion, Group, Prompt, rows_of
from policy.oracle import shapes, some_groups

A = Completion(ids=(11, 12, 13), temperature=0.5)
B = Completion(ids=(21,))
C = Completion(ids=(31, 32, 33, 34), trained=(False, True, False, False))
GROUPS = [Group(Prompt((1, 2)), (A, B)), Group(Prompt((5,)), (C,))]


def test_the_stream_of_a_small_example() -> None:
    (whole,) = pack(GROUPS, 100)
    assert isinstance(whole, SharedPack)
    # The last scored token of a completion is not run, nor is what follows it.
    assert whole.input_ids_SN.tolist() == [[1, 2, 11, 12, 5, 31]]
    assert whole.position_ids_SN.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert whole.trees == (Tree(2, (2,)), Tree(1, (1,)))
    assert whole.rows == (0, 1, 2)
    assert whole.target_M.tolist() == [11, 12, 13, 21, 32]
    assert whole.source_M.tolist() == [1, 2, 3, 1, 5]
    assert whole.row_M.tolist() == [0, 0, 0, 1, 2]
    assert whole.column_M.tolist() == [0, 1, 2, 0, 1]
    assert whole.temperature_M.tolist() == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert (whole.width, whole.tokens, whole.partial) == (4, 6, False)
    assert whole.scatter(whole.target_M).tolist() == [[11, 12, 13, 0], [21, 0, 0, 0], [0, 32, 0, 0]]


def test_the_rows_of_a_small_example() -> None:
    (whole,) = pack(GROUPS, 100, shared=False)
    assert isinstance(whole, RowsPack)
    assert whole.input_ids_SN.tolist() == [[1, 2, 11, 12], [1, 2, 0, 0], [5, 31, 0, 0]]
    assert whole.source_M.tolist() == [1, 2, 3, 5, 9]
    assert whole.tokens == 12


def test_a_group_larger_than_the_budget_is_split_and_says_so() -> None:
    packs = pack(shapes((10, (6, 6, 6, 31)), (5, (5,))), 20)
    assert [p.rows for p in packs] == [(0, 1), (2,), (3,), (4,)]
    assert [p.partial for p in packs] == [True, True, True, False]
    assert [p.tokens for p in packs] == [20, 15, 40, 9]  # a single row larger than the budget has a pack of its own


def test_parts_of_a_split_group_share_packs_with_others() -> None:
    packs = pack(shapes((4, (9, 9, 9)), (2, (3,))), 23)
    assert [p.rows for p in packs] == [(0, 1), (2, 3)]
    assert [p.partial for p in packs] == [True, True]


@settings(max_examples=100, deadline=None)
@given(some_groups(), st.integers(1, 80), st.booleans())
def test_every_scored_token_once_and_no_budget_exceeded(groups: list[Group], budget: int, shared: bool) -> None:
    packs = pack(groups, budget, shared=shared)
    rows = rows_of(groups)
    assert sorted(r for p in packs for r in p.rows) == list(range(len(rows)))
    assert all(list(p.rows) == sorted(p.rows) for p in packs)
    for p in packs:
        assert p.tokens <= budget or len(p.rows) == 1
        assert p.partial == any(_split(p, rows, g) for g in range(len(groups)))
        flat = p.input_ids_SN.flatten().tolist()
        scored: dict[int, list[int]] = {}
        for m, source in enumerate(p.source_M.tolist()):
            _, group, completion = rows[p.rows[int(p.row_M[m])]]
            column = int(p.column_M[m])
            assert int(p.target_M[m]) == completion.ids[column]
            assert flat[source] == (completion.ids[column - 1] if column else group.prompt.ids[-1])
            scored.setdefault(int(p.row_M[m]), []).append(column)
        for r, row in enumerate(p.rows):
            completion = rows[row][2]
            trained = completion.trained or [True] * len(completion.ids)
            assert scored.get(r, []) == [c for c, t in enumerate(trained) if t]


def _split(p: Pack, rows: list[tuple[int, Group, Completion]], group: int) -> bool:
    members = {r for r, (g, _, _) in enumerate(rows) if g == group}
    return bool(members & set(p.rows)) and not members <= set(p.rows)


@settings(max_examples=50, deadline=None)
@given(some_groups(), st.integers(1, 80), st.booleans())
def test_a_group_that_fits_is_never_split(groups: list[Group], budget: int, shared: bool) -> None:
    packs = pack(groups, budget, shared=shared)
    rows = rows_of(groups)
    for g, group in enumerate(groups):
        (alone,) = pack([group], 10**6, shared=shared)
        if alone.tokens <= budget:
            assert not any(_split(p, rows, g) for p in packs)


def test_sharing_runs_the_prompt_once() -> None:
    groups = shapes((100, (10,) * 8))
    assert sum(p.tokens for p in pack(groups, 1000)) == 100 + 8 * 9
    assert sum(p.tokens for p in pack(groups, 1000, shared=False)) == 8 * 109


def test_first_fit_fills_packs() -> None:
    packs = pack(shapes(*[(3, (n,)) for n in (6, 2, 4, 8, 3, 7)]), 20)
    assert len(packs) == 3
    assert sum(p.tokens for p in packs) == 6 * 3 + 5 + 1 + 3 + 7 + 2 + 6


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="tokens_per_micro must be at least 1, got 0"):
        pack(GROUPS, 0)
    with pytest.raises(ValueError, match="width 3 is less than the longest completion, 4 tokens"):
        pack(GROUPS, 10, width=3)
    assert pack([], 10) == []
