"""One model against another, with numbers by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gro.evaluation.estimates import proportion
from gro.evaluation.win_rate import by_judge, by_reward, summary
from gro.judges import Case, Comparison
from gro.types import Completion, Group, Prompt


def group(*rewards: float | None) -> Group:
    return Group(Prompt((1,)), tuple(Completion((3, 2), reward=r) for r in rewards))


def test_by_reward() -> None:
    ours, theirs = (
        [group(1.0, 2.0), group(None, 0.0), group(-1.0, 3.0)],
        [group(0.5, 2.0), group(1.0, 0.1), group(-2.0, None)],
    )
    outcomes = by_reward(ours, theirs)
    assert outcomes == [[1, 0.5], [None, 0], [1, None]]
    found = summary(outcomes)
    assert found["win_rate"].value == pytest.approx(2.5 / 4)
    assert (found["won"].value, found["tied"].value, found["lost"].value) == (0.5, 0.25, 0.25)
    assert found["undecided"].value == 2
    assert found["win_rate"].method == "bootstrap"
    assert [summary(by_reward(theirs, ours))[n].value for n in ("win_rate", "won", "lost")] == [1.5 / 4, 0.25, 0.5]


def test_one_pair_per_prompt_has_wilsons_interval() -> None:
    found = summary([[1.0], [0.0], [0.5], [1.0], [None]])
    assert found["win_rate"] == proportion(2.5, 4)
    assert found["undecided"].value == 1


def test_by_judge() -> None:
    class Shorter:
        def compare(self, cases: Sequence[Case]) -> list[Comparison]:
            verdicts = {"?": Comparison(None), "=": Comparison(0.5, agreed=False)}
            return [verdicts.get(c.answers[0], Comparison(float(len(c.answers[0]) < len(c.answers[1])))) for c in cases]

    cases = [[Case("p", ("a", "bb")), Case("p", ("=", "b"))], [Case("q", ("?", "b")), Case("q", ("aaa", "b"))]]
    outcomes, more = by_judge(Shorter(), cases)
    assert outcomes == [[1, 0.5], [None, 0]]
    assert more["orders_disagree"].value == pytest.approx(1 / 3)
