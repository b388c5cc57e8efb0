"""Rewards onto groups: weights, parts, what is left alone, failures as data."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError
from gro.rewards import Failure, Rewards, RewardSpec, Tally, refuse_failures, reward_metrics
from gro.types import Completion, Group, Prompt

HOSTILE = str(Path(__file__).with_name("hostile.py"))

WORDS: list[str] = []
"""Token id → text: a tokenizer for tests."""


def ids(text: str) -> tuple[int, ...]:
    WORDS.append(text)
    return (len(WORDS) - 1,)


def decode(tokens: Any) -> str:
    return "".join(WORDS[token] for token in tokens)


def group(text: str, *completions: str, key: int = 0, **row: Any) -> Group:
    return Group(Prompt(ids(text), key=key, row=row), tuple(Completion(ids(text)) for text in completions))


def write(folder: Path, code: str) -> str:
    (folder / "mine.py").write_text("import time\nfrom gro.rewards import reward\n" + code)
    return str(folder / "mine.py")


def test_the_weighted_sum_and_its_parts() -> None:
    groups = [group("2+2", "4", "#### 4", "5", answer="4"), group("1+1", "2", "3", answer="2")]
    with Rewards(["maths", {"reward": "exact_match", "weight": 0.5}], decode) as rewards:
        assert rewards.names == ("maths", "exact_match")
        scored = rewards.score(groups)
    assert [[c.reward for c in g.completions] for g in scored] == [[1.5, 1.0, 0.0], [1.5, 0.0]]
    assert scored[0].completions[1].rewards == {"maths": 1.0, "exact_match": 0.0}
    assert [g.prompt for g in scored] == [g.prompt for g in groups]
    assert reward_metrics(scored) == pytest.approx(
        {
            "reward": 4.0 / 5,
            "rewards/maths/mean": 3 / 5,
            "rewards/maths/std": math.sqrt(0.3),
            "rewards/exact_match/mean": 2 / 5,
            "rewards/exact_match/std": math.sqrt(0.3),
        }
    )


def test_demonstrations_and_rewarded_rows_are_left_alone() -> None:
    prompt = Prompt((*ids("2+2"),), row={"answer": "4"})
    target = Completion(ids("4"), role="target")
    mismatch = Completion(ids("4"), role="mismatch")
    scored_before = Completion(ids("4"), reward=-7.0)
    waiting = Completion(ids("4"))
    with Rewards(["exact_match"], decode) as rewards:
        (scored,) = rewards.score([Group(prompt, (target, waiting, mismatch, scored_before))])
        assert scored.completions[::2] == (target, mismatch)
        assert scored.completions[3] is scored_before
        assert scored.completions[1].reward == 1.0
        nothing = [Group(prompt, (target,))]
        assert rewards.score(nothing) == nothing


@pytest.mark.fault("R3")
def test_the_score_lands_on_the_right_completion(tmp_path: Path) -> None:
    """Many groups of different sizes, with rows in between that are not scored."""
    place = write(tmp_path, "@reward(samplewise=True)\ndef f(completions): return [float(c) for c in completions]\n")
    groups, number = [], 0
    for size in (1, 5, 2, 40, 3):
        completions = []
        for _ in range(size):
            completions += [Completion(ids(str(number))), Completion(ids("x"), role="target")]
            number += 1
        groups.append(Group(Prompt(ids("p")), tuple(completions)))
    with Rewards([f"{place}:f"], decode) as rewards:
        scored = rewards.score(groups)
    assert [c.reward for g in scored for c in g.completions if c.role == "sample"] == list(map(float, range(number)))


def test_a_conversation_is_passed_as_messages(tmp_path: Path) -> None:
    place = write(
        tmp_path,
        "def f(prompts, completions, completion_ids, extra):\n"
        "    assert prompts == [[{'role': 'user', 'content': 'hi'}], 'plain', 'decoded'], prompts\n"
        "    assert completions == [[{'role': 'assistant', 'content': 'a'}], 'b', 'c'], completions\n"
        "    assert all(isinstance(i, list) for i in completion_ids)\n"
        "    assert extra == [1, None, None], extra\n"
        "    return [1.0, 2.0, 3.0]\n",
    )
    groups = [
        group("templated hi", "a", prompt=[{"role": "user", "content": "hi"}], extra=1),
        group("templated plain", "b", prompt="plain", completion="not passed"),
        group("decoded", "c"),
    ]
    with Rewards([f"{place}:f"], decode) as rewards:
        scored = rewards.score(groups)
    assert [g.completions[0].reward for g in scored] == [1.0, 2.0, 3.0]


def test_not_applicable_is_excluded_and_not_a_zero(tmp_path: Path) -> None:
    place = write(
        tmp_path,
        "def some(completions): return [None if c in ('b', 'c') else 1.0 for c in completions]\n"
        "def other(completions): return [None if c == 'c' else 10.0 for c in completions]\n",
    )
    with Rewards([f"{place}:some", f"{place}:other"], decode) as rewards:
        (scored,) = rewards.score([group("p", "a", "b", "c")])
        assert rewards.failures == []
    assert [c.reward for c in scored.completions] == [11.0, 10.0, None]
    assert [dict(c.rewards) for c in scored.completions] == [
        {"some": 1.0, "other": 10.0},
        {"some": None, "other": 10.0},
        {"some": None, "other": None},
    ]
    assert reward_metrics([scored]) == {
        "reward": 10.5,
        "rewards/some/mean": 1.0,
        "rewards/some/std": 0.0,
        "rewards/other/mean": 10.0,
        "rewards/other/std": 0.0,
    }


@pytest.mark.fault("R1", "R2", "R4")
@pytest.mark.parametrize(
    ("case", "kind"), [("ZeroDivisionError", "raised"), ("sleep", "hung"), ("os._exit(7)", "died"), ("nan", "value")]
)
def test_a_failed_part_masks_the_completion_and_is_told(case: str, kind: str) -> None:
    function = "values" if kind == "value" else "whole"
    told: list[Failure] = []
    with Rewards([f"{HOSTILE}:{function}", "exact_match"], decode, time_limit=0.5, on_failure=told.append) as rewards:
        (_, scored) = rewards.score(
            [group("q", "a", "b", answer="a", key=4), group("p", "a", case, "c", answer="a", key=5)], step=12
        )
        assert [c.reward for c in scored.completions] == [2.0, None, 1.0]
        assert scored.completions[1].rewards == {function: None, "exact_match": 0.0}
        (failure,) = rewards.failures
        assert told == [failure]
        assert rewards.failure_counts == {function: 1}
        rewards.score([group("p", "a", answer="a")])
        assert rewards.failures == []
        assert rewards.failure_counts == {function: 1}
    assert (failure.reward, failure.kind, failure.step) == (function, kind, 12)
    assert (failure.prompt_key, failure.sample, failure.prompt, failure.completion) == (5, 1, "p", case)
    assert ("ZeroDivisionError" in failure.traceback) == (kind == "raised")


@pytest.mark.fault("R1")
def test_too_many_failures_stop_with_the_first_traceback() -> None:
    groups = [group("the prompt", "a", "ZeroDivisionError", "ZeroDivisionError", "b", "ZeroDivisionError")]
    with (
        Rewards([f"{HOSTILE}:whole"], decode) as rewards,
        pytest.raises(GroError, match=r"'whole' failed on 3 of 5 completions \(60%; .* above 50%\)") as caught,
    ):
        rewards.score(groups)
    for part in ("the prompt", "completion: ZeroDivisionError", "1 // 0", "integer division or modulo by zero"):
        assert part in str(caught.value)
    with Rewards([f"{HOSTILE}:whole"], decode, failure_stop_share=0.6) as rewards:
        assert [c.reward for c in rewards.score(groups)[0].completions] == [1.0, None, None, 1.0, None]
    with Rewards([f"{HOSTILE}:whole"], decode, failure_stop_share=0.0) as rewards, pytest.raises(GroError):
        rewards.score([group("p", "a", "b", "c", "ZeroDivisionError")])


def test_parts_of_a_step_are_judged_together() -> None:
    """One of two parts fails on 2 of 3, which is 2 of 6; the other's failure comes second."""
    told: list[Tally] = []
    with Rewards([f"{HOSTILE}:whole"], decode, failure_stop_share=0.4) as rewards:
        rewards.score([group("p", "a", "b", "c")], tell=told.append)
        scored = rewards.score([group("q", "ZeroDivisionError", "a", "ZeroDivisionError")], tell=told.append)
    assert [c.reward for c in scored[0].completions] == [None, 1.0, None]
    assert [tally.too_many for tally in told] == [{}, {"whole": 2}]
    refuse_failures(*told)
    refuse_failures()
    with pytest.raises(GroError, match=r"'whole' failed on 4 of 9 completions \(44%; .* above 40%\)"):
        refuse_failures(*told, told[1])


@pytest.mark.fault("R3")
@pytest.mark.parametrize("function", ["too_few", "one_number"])
def test_a_function_with_the_wrong_return_stops_the_run(function: str) -> None:
    with Rewards([f"{HOSTILE}:{function}"], decode) as rewards, pytest.raises(GroError, match="3 completions"):
        rewards.score([group("p", "a", "b", "c")])


@pytest.mark.fault("R3")
@pytest.mark.parametrize("function", ["by_place", "sorted_scores"])
def test_a_function_that_mixes_up_its_completions_is_refused(function: str) -> None:
    with (
        Rewards([f"{HOSTILE}:{function}"], decode) as rewards,
        pytest.raises(GroError, match=f"reward '{function}' mixes up its completions"),
    ):
        rewards.score([group("p", "ccc", "a", "bb")])


def test_a_function_that_rightly_depends_on_the_batch_passes() -> None:
    with Rewards([f"{HOSTILE}:relative"], decode) as rewards:
        (scored,) = rewards.score([group("p", "ccc", "a", "bb")])
        assert rewards.notices == []
    assert [c.reward for c in scored.completions] == [1.0, -1.0, 0.0]


@pytest.mark.fault("R9")
def test_a_function_that_changes_its_mind_is_noted_once() -> None:
    with Rewards([f"{HOSTILE}:moody"], decode) as rewards:
        (scored,) = rewards.score([group("p", "a", "b", "c")])
        assert [c.reward for c in scored.completions] == [0.0, 1.0, 2.0]
        rewards.score([group("p", "a", "b", "c")])
        (notice,) = rewards.notices
    assert "reward 'moody' gives the same completions different scores when asked twice" in notice


@pytest.mark.fault("R8")
def test_a_reward_whose_state_was_poisoned_is_noticed_and_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gro.rewards.selfcheck.CANARY_EVERY", 3)
    place = write(
        tmp_path,
        "bonus = []\n@reward(samplewise=True)\ndef f(completions):\n"
        "    if completions == ['poison']: bonus.append(1.0)\n"
        "    return [len(c) + sum(bonus) for c in completions]\n",
    )
    told: list[str] = []
    with Rewards([f"{place}:f"], decode, workers=1, on_notice=told.append) as rewards:
        for step, text in enumerate(["a", "b", "poison", "c", "d", "e", "f"]):
            (scored,) = rewards.score([group("p", text)], step=step)
            assert told == rewards.notices
            assert len(told) == (step >= 3), step
            assert scored.completions[0].reward == len(text) + (step in (2, 3)), step
    assert "reward 'f' gives a completion of step 0 another score than it did then (1 and 2)" in told[0]


@pytest.mark.fault("R8", "R9")
def test_a_function_of_batches_that_remembers_is_told_once_and_keeps_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gro.rewards.selfcheck.CANARY_EVERY", 2)
    place = write(
        tmp_path,
        "seen = []\ndef f(completions):\n    if 'late' in completions: seen.append(1)\n"
        "    return [len(c) + float(len(seen)) for c in completions]\n",
    )
    with Rewards([f"{place}:f"], decode) as rewards:
        for step, text in enumerate(["a", "b", "c", "late", "d", "e", "f", "g", "h"]):
            (scored,) = rewards.score([group("p", text, "xx")], step=step)
            assert len(rewards.notices) == (step >= 4), step
            assert scored.completions[1].reward == 2 + (step >= 3)
    (notice,) = rewards.notices
    assert "reward 'f' gives a completion of step 0 another score than it did then (1 and 2)" in notice
    assert "cannot be repeated exactly" in notice


@pytest.mark.fault("R8", "R9")
def test_what_rightly_changes_is_no_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that reads the step is asked as of then; one that never says the same, or reads the batch, is not."""
    monkeypatch.setattr("gro.rewards.selfcheck.CANARY_EVERY", 1)
    place = write(
        tmp_path,
        "from itertools import count\ncalls = count()\n@reward(samplewise=True)\n"
        "def stepped(completions, trainer_state): return [float(trainer_state.global_step)]\n"
        "@reward(samplewise=True)\ndef moody(completions): return [float(next(calls))]\n",
    )
    with Rewards([f"{place}:stepped", f"{HOSTILE}:relative"], decode) as rewards:
        for step in range(4):
            (scored,) = rewards.score([group("p", "a", "b" * step)], step=step)
            assert scored.completions[0].rewards["stepped"] == step
        assert rewards.notices == []
    with Rewards([f"{place}:moody"], decode, workers=1) as rewards:
        for _ in range(4):
            rewards.score([group("p", "a", "b")])
        assert len(rewards.notices) == 1


def test_the_check_is_left_out_where_it_would_be_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gro.rewards.selfcheck.CHEAP", 0.1)
    place = write(tmp_path, "def f(completions):\n    time.sleep(0.15)\n    return list(range(len(completions)))\n")
    with Rewards([f"{place}:f"], decode) as rewards:
        (scored,) = rewards.score([group("p", "a", "b")])
    assert [c.reward for c in scored.completions] == [0.0, 1.0]


def test_what_rewards_log(tmp_path: Path) -> None:
    place = write(
        tmp_path,
        "def f(completions, trainer_state, log_metric, log_extra):\n"
        "    log_metric('step', trainer_state.global_step)\n"
        "    log_extra('upper', [c.upper() for c in completions])\n"
        "    return [0.0] * len(completions)\n",
    )
    with Rewards([f"{place}:f"], decode) as rewards:
        rewards.score([group("p", "a"), group("p", "b", "c")], step=3)
        assert rewards.logged_metrics == {"step": 3.0}
        assert rewards.logged_extra == {"upper": {(0, 0): "A", (1, 0): "B", (1, 1): "C"}}


def test_two_rewards_of_one_name(tmp_path: Path) -> None:
    place = write(tmp_path, "def f(completions, by=1.0): return [by for _ in completions]\n")
    with Rewards([f"{place}:f", {"reward": f"{place}:f", "by": 5.0, "weight": 2}], decode) as rewards:
        (scored,) = rewards.score([group("p", "a")])
    assert scored.completions[0].rewards == {"f": 1.0, "f_2": 5.0}
    assert scored.completions[0].reward == 11.0


@pytest.mark.parametrize(
    ("item", "spec"),
    [
        ("maths", RewardSpec("maths")),
        ({"reward": "maths"}, RewardSpec("maths")),
        (
            {"reward": "maths", "weight": 2, "time_limit": 3.0, "column": "gold"},
            RewardSpec("maths", 2, {"column": "gold"}, 3.0),
        ),
        (RewardSpec("a:b", 0.0), RewardSpec("a:b", 0.0)),
    ],
)
def test_specs(item: Any, spec: RewardSpec) -> None:
    assert RewardSpec.parse(item) == spec


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "an item of rewards is a name or a mapping with `reward:`, not 3"),
        ({"weight": 1}, "an item of rewards has no key 'reward', but 'weight'"),
        ({"reward": 3}, "reward must be a name or path/to/file.py:function, not 3"),
        ({"reward": "maths", "weight": "2"}, "weight of reward 'maths' must be a finite number, not '2'"),
        ({"reward": "maths", "weight": float("nan")}, "must be a finite number, not nan"),
        ({"reward": "maths", "weight": True}, "must be a finite number, not True"),
        ({"reward": "maths", "weight": None}, "must be a finite number, not None"),
        ({"reward": "maths", "time_limit": 0}, "time_limit of reward 'maths' must be a number of seconds above 0"),
    ],
)
def test_wrong_specs(item: Any, message: str) -> None:
    with pytest.raises(GroError, match=re.escape(message)):
        RewardSpec.parse(item)


@pytest.mark.parametrize(
    ("specs", "options", "message"),
    [
        ([], {}, "rewards is empty"),
        (["math"], {}, "reward 'math' is not known; did you mean 'maths'?"),
        (["maths", "nowhere.py:f"], {}, "reward file nowhere.py does not exist"),
        ([{"reward": "maths", "wieght": 2}], {}, "reward 'maths' has no parameter 'wieght'; did you mean 'weight'?"),
        (["maths"], {"failure_stop_share": 50}, "failure_stop_share is a share between 0 and 1, not 50"),
    ],
)
def test_wrong_rewards(specs: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(GroError, match=re.escape(message)):
        Rewards(specs, decode, **options)
