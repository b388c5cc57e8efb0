"""The replay buffer: first in, first out; keyed draws; what a resumed run needs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from scripted_rollouts import ScriptedEngine, keys, online, rows

from gro.training.replay import Replay
from gro.training.sources import Mixture, Offline
from gro.types import Completion


def replay(capacity: int, per_step: int | None = None, *, fresh: int = 2, n: int = 1000) -> Replay:
    part = online(n, ScriptedEngine(), prompts_per_step=fresh)
    return Replay(part, capacity=capacity, per_step=per_step, fresh=fresh, seed=4)


def steps_of(groups: Any) -> list[int]:
    """At which step each was rolled out: the scripted engine's second token."""
    return [g.completions[0].ids[1] for g in groups]


def test_the_oldest_leave_first() -> None:
    source = replay(capacity=6, per_step=6)
    assert [sorted(steps_of(source.take(step))) for step in range(5)] == [
        [0, 0], [0, 0, 1, 1], [0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 3], [2, 2, 3, 3, 4, 4],
    ]  # fmt: skip
    assert source.observed["replay/groups"] == 6
    assert source.observed["replay/age"] == pytest.approx(1.0)
    assert source.observed["reward"] == pytest.approx(1.0), "of the fresh ones"


def test_draws_are_keyed_by_the_step_and_without_putting_back() -> None:
    first, second = replay(capacity=16, per_step=4), replay(capacity=16, per_step=4)
    for step in range(12):
        drawn = first.take(step)
        assert drawn == second.take(step)
        places = [(g.prompt.key, g.completions[0].ids[1]) for g in drawn]
        assert len(set(places)) == len(places) == min(4, 2 * step + 2)


def test_every_kept_group_is_as_likely_as_any_other() -> None:
    source = replay(capacity=8, per_step=2)
    ages: Counter[int] = Counter()
    for step in range(1004):
        born = steps_of(source.take(step))
        ages.update(step - b for b in born if step >= 4)
    # 2000 draws over 4 ages: 500 ± 19 each; eight standard deviations are a bug.
    assert set(ages) == {0, 1, 2, 3}
    assert all(350 < count < 650 for count in ages.values())


def test_only_fresh_completions_keep_the_samplers_log_probs() -> None:
    """Those of earlier steps belong to other weights: the gap to them is no error of the sampler."""

    class Reporting(ScriptedEngine):
        def generate(self, *arguments: Any, **more: Any) -> list[tuple[Completion, ...]]:
            answers = super().generate(*arguments, **more)
            return [tuple(replace(c, logp=(-1.0, -2.0)) for c in completions) for completions in answers]

    source = Replay(online(9, Reporting()), capacity=4, per_step=4, fresh=2)
    source.take(0)
    for group in source.take(1):
        fresh = group.completions[0].ids[1] == 1
        assert all((c.logp is not None) == fresh for c in group.completions)
        assert all(c.reward is not None for c in group.completions)


def test_a_resumed_buffer_goes_on_as_it_was() -> None:
    whole, before = replay(capacity=10, per_step=5), replay(capacity=10, per_step=5)
    taken = [whole.take(step) for step in range(8)]
    for step in range(4):
        before.take(step)
    after = replay(capacity=10, per_step=5)
    after.take(0)
    after.load(json.loads(json.dumps(before.state())))
    assert [after.take(step) for step in range(4, 8)] == taken[4:]
    assert any(born < 4 for born in steps_of(taken[4]))


def test_columns_of_rows_are_not_kept() -> None:
    """In which there may be what no state can hold, such as a time; rewards have read them."""
    source = replay(capacity=10, per_step=5)
    assert all(group.prompt.row == {} for step in range(3) for group in source.take(step))
    assert all(item["group"]["prompt"]["row"] == {} for item in source.state()["kept"])


def test_a_part_of_a_mixture() -> None:
    source = Mixture([(replay(capacity=100, per_step=3), 0.5), (Offline(rows(9, "file"), 1), 0.5)], per_step=4)
    counts = [Counter(g.completions[0].role for g in source.take(step)) for step in range(3)]
    assert counts == [{"sample": 2, "target": 2}] + [{"sample": 3, "target": 2}] * 2
    assert source.observed["replay/groups"] == 6
    assert len(keys(replay(capacity=5).take(0))) == 2, "as many as are fresh"


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"per_step": 0}, {"fresh": 0}])
def test_what_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Replay(online(3, ScriptedEngine()), **{"capacity": 3, "fresh": 1, **wrong})
