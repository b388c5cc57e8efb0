"""A judge as a reward of groups: scores, against a column, and among the completions of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gro.errors import GroError
from gro.judges import Judge, JudgeSettings
from gro.judges.reward import JudgeReward
from gro.rewards import Rewards
from gro.types import Completion, Group, Prompt
from judges.test_judge import Scripted, longer
from tiny import tiny_tokenizer


def decode(ids: Any) -> str:
    return str(tiny_tokenizer().decode(list(ids), skip_special_tokens=True))


def group(key: int, *texts: str, **row: Any) -> Group:
    encode = tiny_tokenizer()
    done = tuple(Completion((*encode(text, add_special_tokens=False).input_ids, 2)) for text in texts)
    return Group(Prompt((1, 40 + key), key=key, row={"prompt": "p?", **row}), done)


def rewards(groups: list[Group], say: Callable[..., str | None], **settings: Any) -> list[list[float | None]]:
    """By way of the rewards of a run."""

    def make(params: Any) -> JudgeReward:
        return JudgeReward(Judge(JudgeSettings.parse(params), Scripted(say)))

    spec = {"reward": "judge", "model": "m", "weight": 2.0, **settings}
    with Rewards([spec], decode, inside={"judge": make}, failure_stop_share=1.0) as scorer:
        return [[c.reward for c in g.completions] for g in scorer.score(groups)]


def test_scores() -> None:
    found = rewards(
        [group(0, "four", "toolong"), group(1, "x")], lambda a: f"Score: {len(a)}", kind="scores", scale=[0, 5]
    )
    assert found == [[8, None], [2]], "twice the score; a score off the scale is no 0"


def test_against_a_column() -> None:
    groups = [group(0, "longer", "x", "same", gold="same"), group(1, "y", gold=None)]
    assert rewards(groups, longer, against="gold") == [[2, 0, 1], [None]]


def test_among_the_group() -> None:
    """Every pair: the longest wins all, equal ones tie; groups of the same text are groups of their own."""
    groups = [group(0, "aaa", "b", "cc", "dd"), group(1, "eeee", "f")]
    assert rewards(groups, longer) == [[2, 0, pytest.approx(2 * 1.5 / 3), pytest.approx(2 * 1.5 / 3)], [2, 0]]
    assert rewards([group(0, "alone")], longer) == [[None]], "there is nothing to win"


def test_comparisons_that_fail_are_left_out() -> None:
    def say(a: str, b: str) -> str | None:
        return "hm" if "odd" in (a, b) else longer(a, b)

    assert rewards([group(0, "aa", "b", "odd")], say) == [[2, 0, None]]


def test_failures_have_their_reasons() -> None:
    def make(params: Any) -> JudgeReward:
        return JudgeReward(Judge(JudgeSettings.parse(params), Scripted(lambda a, b: "hm")))

    with Rewards([{"reward": "judge", "model": "m"}], decode, inside={"judge": make}) as scorer:
        with pytest.raises(
            GroError, match=r"reward 'judge' failed on 2 of 2 completions.*no verdict, but 'hm'"
        ) as error:
            scorer.score([group(0, "a", "b")])
        assert "hm" in str(error.value)
