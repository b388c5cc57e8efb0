"""Rollouts: how they are keyed, what joins them, which prompts are replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from scripted_rollouts import Scores, ScriptedEngine, keys, online, rows

from gro.engines.base import Sampling
from gro.training.rollouts import Judged, Online, varies
from gro.training.settings import Resampling
from gro.training.sources import Mixture, Offline, permutation
from gro.types import Completion, Group, Prompt


def test_rollouts_are_keyed_by_row_seed_and_step() -> None:
    engine, scores = ScriptedEngine(), Scores()
    source = online(10, engine, scores)
    groups = source.take(3)
    order = permutation(10, 5, 0).tolist()
    assert engine.calls == [(order[6:8], 3, Sampling(), 5, 3)]
    assert keys(groups) == order[6:8]
    assert [[(c.ids, c.reward) for c in g.completions] for g in groups] == [[((i, 3), float(i)) for i in range(3)]] * 2
    assert groups[0].greedy_reward is None
    source.receive(None, 3)
    assert engine.versions == [4]


def test_the_same_prompt_twice_in_a_step_is_sampled_with_other_noise() -> None:
    engine = ScriptedEngine()
    online(3, engine, prompts_per_step=7).take(0)
    asked = engine.calls[0][0]
    assert len(set(asked)) == 7
    assert sorted(Counter(k % (1 << 40) for k in asked).values()) == [2, 2, 3]
    assert asked[:3] == permutation(3, 5, 0).tolist()


def test_greedy_answers_are_scored_in_the_same_call() -> None:
    engine, scores = ScriptedEngine(), Scores()
    groups = online(10, engine, scores, greedy=True).take(0)
    assert [g.greedy_reward for g in groups] == [10.0, 10.0]
    assert [len(g.completions) for g in groups] == [3, 3]
    assert [(n, s.greedy) for _, n, s, _, _ in engine.calls] == [(3, False), (1, True)]
    assert scores.calls == 1


class ByPrompt:
    """Rewards as a function of the prompt's row (its key without repetition) and the number of the sample."""

    def __init__(self, reward: Callable[[int, int], float | None]) -> None:
        self.reward, self.seen = reward, []

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        self.seen += keys(groups)
        scored = []
        for group in groups:
            row = group.prompt.key % (1 << 40)
            rewards = [self.reward(row, c.ids[0]) for c in group.completions]
            pairs = zip(group.completions, rewards, strict=True)
            parts = tuple(replace(c, reward=r, rewards={"right": r, "short": c.ids[0]}) for c, r in pairs)
            scored.append(replace(group, completions=parts))
        return scored


def even_rows_vary(row: int, sample: int) -> float:
    return float(sample) if row % 2 == 0 else 1.0


def test_demonstrations_stand_beside_the_samples() -> None:
    scores = Scores()
    source = online(5, ScriptedEngine(), scores, beside=True)
    for group in source.take(0):
        assert [(c.role, c.reward) for c in group.completions] == [
            ("sample", 0.0), ("sample", 1.0), ("sample", 2.0), ("target", None),
        ]  # fmt: skip
    assert "frac_reward_zero_std" in source.observed
    without = [Group(Prompt((1,), key=7), ())]
    bare = Online(without, ScriptedEngine(), None, Sampling(), prompts_per_step=1, group_size=1, beside=True)
    with pytest.raises(ValueError, match="prompt 7 has no demonstration"):
        bare.take(0)


def test_where_nothing_reads_rewards_none_are_asked_for() -> None:
    source = Online(rows(3), ScriptedEngine(), None, Sampling(), prompts_per_step=2, group_size=1, beside=True)
    (first, _) = source.take(0)
    assert [(c.role, c.reward) for c in first.completions] == [("sample", None), ("target", None)]
    assert source.observed["rewards/failed"] == 0


def test_prompts_whose_answers_are_equally_good_are_replaced() -> None:
    """Half of the rows are of no use; replacements come from an order of their own until the step is full."""
    engine = ScriptedEngine()
    source = online(20, engine, ByPrompt(even_rows_vary), prompts_per_step=6, resample=Resampling(rounds=8))
    groups = source.take(1)
    asked = [key for call in engine.calls for key in call[0]]
    first = permutation(20, 5, 0).tolist()[6:12]
    assert engine.calls[0][0] == first
    assert [k for k in keys(groups) if k in first] == [k for k in first if k % 2 == 0]
    assert len(groups) == 6
    assert all(varies(group) for group in groups)
    assert len(engine.calls[1][0]) == sum(k % 2 for k in first)
    # Nobody is asked twice with the same noise, and what was found is told.
    assert len(set(asked)) == len(asked)
    assert source.observed["resample/prompts"] == len(asked)
    assert source.observed["resample/informative"] == 6
    useless = sum((key % (1 << 40)) % 2 for key in asked)
    assert source.observed["frac_reward_zero_std"] == pytest.approx(useless / len(asked))
    assert source.observed["reward"] == pytest.approx(1.0), "of all that was rolled out"
    # A function of the step: another source that was asked for nothing before gives the same.
    again = online(20, ScriptedEngine(), ByPrompt(even_rows_vary), prompts_per_step=6, resample=Resampling(rounds=8))
    assert again.take(1) == groups


def test_the_places_of_replacements_are_used_once() -> None:
    """No round of a step takes the places of another, also where the steps are of different size (in a mixture)."""
    engine = ScriptedEngine()
    source = online(10_000, engine, ByPrompt(lambda row, sample: 1.0), resample=Resampling(rounds=3))
    for start, count in ((0, 2), (2, 3), (5, 1)):
        source.draw(start, count, step=start)
    spare = [key for i, call in enumerate(engine.calls) if i % 4 for key in call[0]]
    assert spare == permutation(10_000, ~5, 0).tolist()[:18]


def test_when_the_rounds_are_used_up_what_was_found_is_learnt_from() -> None:
    rare = ByPrompt(lambda row, sample: float(sample) if row == 3 else 0.5)
    source = online(12, ScriptedEngine(), rare, prompts_per_step=12, resample=Resampling(rounds=1))
    groups = source.take(0)
    assert {key % (1 << 40) for key in keys(groups)} == {3}
    assert 1 <= len(groups) <= 2
    never = online(12, ScriptedEngine(), ByPrompt(lambda row, sample: 0.5), resample=Resampling(rounds=2))
    assert keys(never.take(0)) == permutation(12, 5, 0).tolist()[:2], "a step of nothing, which raises the alarm"
    assert never.observed["frac_reward_zero_std"] == 1.0
    assert never.observed["resample/prompts"] == 6


def test_one_part_of_the_reward_may_tell() -> None:
    """All wrong, but of different length: no reason to keep the group where the right answer decides."""
    group = ByPrompt(lambda row, sample: 0.0).score([Group(Prompt((1,)), (Completion((0,)), Completion((1,))))])[0]
    assert not varies(group)
    assert not varies(group, "right")
    assert varies(group, "short")
    longer = replace(group, completions=tuple(replace(c, reward=-float(c.ids[0])) for c in group.completions))
    assert varies(longer)
    assert not varies(longer, "right")
    assert not varies(replace(group, completions=tuple(replace(c, reward=None) for c in group.completions)))


def test_equal_within_rounding() -> None:
    def of(*rewards: float) -> Group:
        return Group(Prompt((1,)), tuple(Completion((1,), reward=r) for r in rewards))

    assert not varies(of(0.1 + 0.2, 0.3))
    assert not varies(of(1e4, 1e4 + 5e-3))
    assert varies(of(0.0, 1e-5))


def test_rows_are_judged_once() -> None:
    given = [Group(Prompt((1,), key=i), (Completion((i,)), Completion((i + 10,)))) for i in range(4)]
    judge = ByPrompt(lambda row, sample: float(sample) if sample != 2 else None)
    source = Mixture([(Judged(Offline(given, 1), judge), 1)], per_step=3)
    taken = [group for step in range(4) for group in source.take(step)]
    assert sorted(judge.seen) == [0, 1, 2, 3]
    assert sorted(keys(taken)) == sorted([0, 1, 2, 3] * 3)
    for group in taken:
        key = group.prompt.key
        assert [c.reward for c in group.completions] == [None if key == 2 else float(key), float(key + 10)]
        assert group.completions[1].rewards["right"] == key + 10
