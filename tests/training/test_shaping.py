"""Groups in the form that an algorithm learns from."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from scripted_rollouts import ScriptedEngine, online

from gro.training.metrics import describe_rollouts
from gro.training.shaping import Shaped, best_against_worst, with_mismatches
from gro.types import Completion, Group, Prompt


def group(key: int, rewards: Sequence[float | None], *, targets: int = 0, prompt: int | None = None) -> Group:
    """Sample number i has the tokens (key, i)."""
    samples = [
        Completion((key, i), reward=r, rewards={"r": r}, logp=(-1.0, -1.0), finish="stop")
        for i, r in enumerate(rewards)
    ]
    demonstrations = [Completion((key, 100 + i), role="target") for i in range(targets)]
    return Group(Prompt((key if prompt is None else prompt,), key=key), (*samples, *demonstrations))


def ids(groups: Sequence[Group]) -> list[list[int]]:
    return [[c.ids[1] for c in g.completions] for g in groups]


def test_the_best_and_the_worst_are_kept_with_their_rewards() -> None:
    groups, metrics = best_against_worst([group(0, [0.5, 2.0, -1.0, 2.0, -1.0]), group(1, [0.0, 1.0])])
    assert ids(groups) == [[1, 2], [1, 0]]
    assert [[c.reward for c in g.completions] for g in groups] == [[2.0, -1.0], [1.0, 0.0]]
    assert metrics == {"pairs": 2, "pairs/ties": 0}


def test_ties_and_groups_without_two_rewards_are_left_out() -> None:
    groups, metrics = best_against_worst(
        [group(0, [1, 1, 1]), group(1, [None, 1, 0]), group(2, [None, 1]), group(3, [None, None]), group(4, [0.3])]
    )
    assert [g.prompt.key for g in groups] == [1]
    assert ids(groups) == [[1, 2]]
    assert metrics == {"pairs": 1, "pairs/ties": 4}
    rounding, _ = best_against_worst([group(0, [0.1 + 0.2, 0.3]), group(1, [1, 0])])
    assert [g.prompt.key for g in rounding] == [1]


def test_a_step_without_any_pair_is_a_step() -> None:
    groups, metrics = best_against_worst([group(0, [1, 1, 1]), group(1, [0, 0, 0])])
    assert ids(groups) == [[0, 1]]
    assert metrics == {"pairs": 0, "pairs/ties": 2}


def test_demonstrations_stay() -> None:
    groups, metrics = best_against_worst([group(0, [1, 0, 2], targets=1), group(1, [], targets=2)])
    assert ids(groups) == [[2, 1, 100], [100, 101]]
    assert metrics == {"pairs": 1, "pairs/ties": 0}


def test_a_completion_of_the_next_prompt_joins_each_group() -> None:
    before = [group(0, [1, 0]), group(1, [], targets=1), group(2, [3])]
    after, metrics = with_mismatches(before)
    assert metrics == {}
    assert [g.completions[:-1] for g in after] == [g.completions for g in before]
    borrowed = [g.completions[-1] for g in after]
    assert [c.ids for c in borrowed] == [(1, 100), (2, 0), (0, 0)]
    assert all((c.role, c.reward, dict(c.rewards), c.logp) == ("mismatch", None, {}, None) for c in borrowed)


def test_a_mismatch_belongs_to_another_prompt() -> None:
    after, _ = with_mismatches([group(0, [1], prompt=7), group(1, [1], prompt=7), group(2, [1], prompt=8)])
    assert [g.completions[-1].ids for g in after] == [(2, 0), (2, 0), (0, 0)]
    alone = [group(0, [1], prompt=7), group(1, [0], prompt=7)]
    assert with_mismatches(alone)[0] == alone
    assert with_mismatches(alone[:1])[0] == alone[:1]


def test_mismatches_do_not_count_in_what_is_told_of_rollouts() -> None:
    groups = [group(0, [1, 0]), group(1, [0.5, 0.5])]
    assert describe_rollouts(with_mismatches(groups)[0]) == describe_rollouts(groups)


def test_what_is_told_is_of_all_rollouts() -> None:
    """Rewards of best and worst alone would not be the policy's."""
    engine = ScriptedEngine()
    source = Shaped(online(9, engine, group_size=4), [best_against_worst, with_mismatches])
    groups = source.take(0)
    assert [[c.reward for c in g.completions] for g in groups] == [[3.0, 0.0, None]] * 2
    assert source.observed["reward"] == pytest.approx(1.5)
    assert source.observed["pairs"] == 2
    source.receive(None, 0)
    assert engine.versions == [1]
