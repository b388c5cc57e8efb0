"""Several rewards become one: clipping, weights, normalisation before or after the sum."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gro.errors import GroError
from gro.objective.credit import GroupZScore
from gro.rewards import Normalised, Rewards, RewardSpec
from gro.rewards.combine import weighted_sum, z_scores
from gro.types import Batch, Completion, Group, Prompt

SPECS = (RewardSpec("a"), RewardSpec("b", weight=0.5, clip=(0.0, 10.0)))


class Table:
    """Rewards from a table instead of processes: per group, per completion, the parts."""

    specs = SPECS

    def __init__(self, *groups: Sequence[tuple[float | None, float | None]], failed: Sequence[int] = ()) -> None:
        self._parts, self._failed = groups, failed

    def score(self, groups: Sequence[Group], *, step: int = 0, tell: Any = None) -> list[Group]:
        scored = []
        for group, rows in zip(groups, self._parts, strict=True):
            completions = []
            for i, (completion, row) in enumerate(zip(group.completions, rows, strict=True)):
                parts = dict(zip("ab", row, strict=True))
                total = None if i in self._failed else weighted_sum(parts, self.specs)
                fresh = completion.role == "sample" and completion.reward is None
                completions.append(replace(completion, reward=total, rewards=parts) if fresh else completion)
            scored.append(replace(group, completions=tuple(completions)))
        return scored


def group(size: int, **completion: Any) -> Group:
    return Group(Prompt((1,)), tuple(Completion((2,), **completion) for _ in range(size)))


def rewards_of(scored: Sequence[Group]) -> list[list[float | None]]:
    return [[c.reward for c in g.completions] for g in scored]


def test_the_weighted_sum_clips_each_part() -> None:
    assert weighted_sum({"a": 3.0, "b": 100.0}, SPECS) == 3.0 + 0.5 * 10
    assert weighted_sum({"a": 3.0, "b": -1.0}, SPECS) == 3.0
    assert weighted_sum({"a": None, "b": 4.0}, SPECS) == 2.0
    assert weighted_sum({"a": None, "b": None}, SPECS) is None


def test_each_then_sum() -> None:
    """a: 0, 1 → −1, 1.  b, clipped: 0, 10 → −1, 1; half of it.  Parts stay as they were."""
    table = Table([(0.0, -5.0), (1.0, 50.0)], [(2.0, 10.0), (4.0, 0.0)])
    scored = Normalised(table, "each").score([group(2), group(2)], step=1)
    assert rewards_of(scored) == [pytest.approx([-1.5, 1.5], abs=1e-5), pytest.approx([-0.5, 0.5], abs=1e-5)]
    assert [dict(c.rewards) for c in scored[0].completions] == [{"a": 0.0, "b": -5.0}, {"a": 1.0, "b": 50.0}]


def test_parts_are_clipped_before_they_are_normalised() -> None:
    """b: 0, 5, 10 instead of −90, 5, 10: with deviation √(50/3)."""
    scored = Normalised(Table([(1.0, -90.0), (1.0, 5.0), (1.0, 10.0)]), "each").score([group(3)])
    edge = 0.5 * 5 / np.sqrt(50 / 3)
    assert rewards_of(scored) == [pytest.approx([-edge, 0, edge], abs=1e-5)]


def test_sum_then_normalise() -> None:
    """Sums: 0, 6 and 7, 4."""
    table = Table([(0.0, -5.0), (1.0, 50.0)], [(2.0, 10.0), (4.0, 0.0)])
    scored = Normalised(table, "sum").score([group(2), group(2)])
    assert rewards_of(scored) == [pytest.approx([-1, 1], abs=1e-5), pytest.approx([1, -1], abs=1e-5)]


def test_what_does_not_apply_or_failed_takes_no_part() -> None:
    """Of the first reward only two apply; the fourth completion failed and must not move the others' mean."""
    table = Table([(1.0, 2.0), (3.0, 4.0), (None, 6.0), (1000.0, 8.0)], failed=[3])
    (first, second, third, fourth) = rewards_of(Normalised(table, "each").score([group(4)]))[0]
    b = 0.5 * np.array([-1, 0, 1]) / np.std([2, 4, 6]) * 2
    assert [first, second, third] == pytest.approx([-1 + b[0], 1 + b[1], b[2]], abs=1e-5)
    assert fourth is None


def test_equal_rewards_become_zero_and_other_rows_stay() -> None:
    table = Table([(1.0, 1.0)] * 3, [(1.0, 1.0)] * 2, [(1.0, 1.0)] * 2)
    groups = [group(3), group(2, reward=7.0), group(2, role="target")]
    scored = Normalised(table, "each").score(groups)
    assert rewards_of(scored) == [[0.0] * 3, [7.0] * 2, [None] * 2]
    assert scored[1:] == groups[1:]


def test_a_single_answer_is_refused() -> None:
    with pytest.raises(GroError, match=r"reward_normalise: each compares .* take a group_size above 1"):
        Normalised(Table([(1.0, 1.0)]), "each").score([group(1)])


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_the_z_score_is_that_of_the_credit(values: list[float]) -> None:
    batch = Batch(
        mask_BT=torch.ones(len(values), 1, dtype=torch.bool),
        group_B=torch.zeros(len(values), dtype=torch.int64),
        reward_B=torch.tensor(values, dtype=torch.float64),
    )
    advantage_BX, _ = GroupZScore()(batch, {})
    assert z_scores(values) == pytest.approx(advantage_BX.flatten().tolist(), abs=1e-6)


def test_through_processes() -> None:
    """The real thing: exact_match is right for the second, length is 0 and −1."""
    words = {1: "p", 2: "longer", 3: "4"}
    specs = [{"reward": "exact_match", "weight": 2}, {"reward": "length", "most": 2, "unit": "characters"}]
    groups = [Group(Prompt((1,), row={"answer": "4"}), (Completion((2,)), Completion((3,))))]
    with Rewards(specs, lambda ids: words[ids[0]]) as rewards:
        assert rewards_of(rewards.score(groups)) == [[-1.0, 2.0]]
        assert rewards_of(Normalised(rewards, "each").score(groups)) == [pytest.approx([-3.0, 3.0], abs=1e-4)]


@pytest.mark.parametrize("clip", [[1.0], [1.0, 1.0], [2, 1], ["a", 2], 3, [0, float("nan")], [True, 2]])
def test_wrong_clips_are_refused(clip: Any) -> None:
    with pytest.raises(GroError, match=re.escape("clip of reward 'maths' must be two numbers [low, high]")):
        RewardSpec.parse({"reward": "maths", "clip": clip})


def test_a_clip_of_a_recipe() -> None:
    assert RewardSpec.parse({"reward": "maths", "clip": [-1, 1]}).clip == (-1, 1)
