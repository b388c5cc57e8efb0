"""Rules of early stopping, by hand, and a run that really stops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gro.runs import RunReader
from gro.training.settings import Stopping
from gro.training.stopping import Watch, disagreement, diverged, member_scores, standards, turned_down
from gro.types import Completion, Group, Prompt
from jobs_on_sums import cli, online, sft, write_data


@pytest.mark.parametrize(
    ("golds", "patience", "stops"),
    [
        ([0.0, 1.0, 2.0, 3.0], 1, None),
        ([0.0, 1.0, 0.9, 2.0], 1, 2),
        ([0.0, 1.0, 0.9, 2.0], 2, None),
        ([0.0, 1.0, 0.9, 0.95, 2.0], 2, 3),
        ([1.0, 1.0], 1, 1),  # as good as before is no new best
        ([0.0, math.nan, 1.0], 2, None),
        ([1.0, math.nan, math.nan], 2, 2),
        ([], 1, None),
    ],
)
def test_gold_turns_down(golds: list[float], patience: int, stops: int | None):
    assert turned_down(golds, patience) == stops
    if stops is not None:
        assert turned_down(golds[: stops + 1], patience) == stops, "the same while the run is on its way"
        assert turned_down(golds[:stops], patience) is None


@pytest.mark.parametrize(
    ("series", "patience", "stops"),
    [
        ([0.4, 0.5, 0.6, 0.6], 1, None),  # 1.5 times is the limit, and not above it
        ([0.4, 0.61, 0.3, 0.61, 0.62], 2, 4),
        ([0.4, 0.61, 0.3, 0.61, 0.62], 1, 1),
        ([0.0, 0.1], 1, 1),
        ([], 1, None),
    ],
)
def test_an_ensemble_disagrees(series: list[float], patience: int, stops: int | None):
    assert diverged(series, 1.5, patience) == stops


def test_disagreement_by_hand():
    start = {"a": [0.0, 2.0], "b": [10.0, 30.0]}
    at_start = standards(start)
    assert at_start == {"a": (1.0, pytest.approx(math.sqrt(2))), "b": (20.0, pytest.approx(math.sqrt(200)))}
    assert disagreement(start, at_start) == pytest.approx(0.0, abs=1e-12), "the same in units of their own"
    # In its own unit a says 1/√2 and b says −1/√2 of the first, and both 0 of the second: deviations 1 and 0.
    assert disagreement({"a": [2.0, 1.0], "b": [10.0, 20.0]}, at_start) == pytest.approx(0.5)
    assert standards({"flat": [3.0, 3.0], "one": [2.0]}) == {"flat": (3.0, 1.0), "one": (2.0, 1.0)}


def groups(*rewards: dict[str, float | None]) -> list[Group]:
    return [Group(Prompt((1,)), tuple(Completion((2,), reward=0.0, rewards=parts) for parts in rewards))]


def test_samples_that_some_reward_failed_on_are_left_out():
    assert member_scores(groups({"a": 1.0, "b": 2.0}, {"a": None, "b": 5.0}, {"a": 3.0, "b": 4.0})) == {
        "a": [1.0, 3.0],
        "b": [2.0, 4.0],
    }
    assert member_scores(groups({"a": None, "b": 1.0})) == {}
    assert member_scores([Group(Prompt((1,)), (Completion((2,), role="target"),))]) == {}


def test_a_watch_says_when_and_why():
    watch = Watch(Stopping("disagreement", patience=2, threshold=2.0))
    assert watch.step(1, groups({"a": 0.0, "b": 0.0}, {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 2.0})) == {
        "rewards/disagreement": pytest.approx(math.sqrt(2) / 3)
    }
    assert watch.reason() is None
    assert watch.step(2, groups({"a": None, "b": 1.0})) == {}, "nothing to compare in this step"
    for step in (3, 4):
        assert watch.reason() is None
        apart = watch.step(step, groups({"a": 3.0, "b": 0.0}))["rewards/disagreement"]
        assert apart == pytest.approx(3 / math.sqrt(2))
    why = watch.reason()
    assert why is not None
    assert "disagree 4.5 times as much as at step 1 (2.121, then 0.4714; the limit is 2 times)" in why

    watch = Watch(Stopping("gold", patience=1))
    assert watch.step(1, groups({"a": 0.0, "b": 0.0})) == {}
    for step, reward in ((0, 0.1), (10, 0.5)):
        watch.evaluated(step, {"eval_reward": reward})
        assert watch.reason() is None
    watch.evaluated(20, {"eval_reward": 0.4})
    assert watch.reason() == (
        "the held-out reward was highest at step 10 (0.5) and has not been higher in 1 evaluations since (now 0.4)"
    )


JUDGES = """
def shorter(completions, **_):
    return [-float(len(c)) for c in completions]

def apart(completions, trainer_state, **_):
    sign = 1 if trainer_state.global_step < 4 else -1
    return [-sign * float(len(c)) for c in completions]

def worse(completions, trainer_state, **_):
    return [float(len(c)) for c in completions]
"""


def test_a_run_stops(tmp_path: Path):
    write_data(tmp_path)
    (tmp_path / "judges.py").write_text(JUDGES)
    assert cli("train", sft(tmp_path, training={"steps": 2})).code == 0
    held_out = {"data": {"path": str(tmp_path / "sums.jsonl"), "kind": "prompt_only", "start": 80}, "limit": 4}
    training = {"steps": 12, "eval_every": 2}
    judge = f"{tmp_path / 'judges.py'}"

    ensemble = online(
        tmp_path,
        "ensemble",
        rewards=[f"{judge}:shorter", f"{judge}:apart"],
        eval=held_out,
        training=training | {"stop": {"by": "disagreement", "patience": 2, "threshold": 1.0}},
    )
    done = cli("train", ensemble)
    assert done.code == 0, done.err
    assert "stopped early: the rewards disagree" in done.out
    with RunReader(tmp_path / "ensemble") as run:
        assert run.status == "finished"
        steps, seen = run.metrics()["rewards/disagreement"]
        assert steps.tolist() == [1, 2, 3, 4, 5, 6], "the judges part at step 5 (the rollouts of step 4)"
        assert seen[:4] == pytest.approx(0.0, abs=1e-9)
        assert min(seen[4:]) > 0.1
        assert any("stopped early" in event.message and event.step == 6 for event in run.events())

    gold = online(
        tmp_path,
        "gold",
        rewards=[f"{judge}:shorter"],
        eval=held_out | {"rewards": [{"reward": f"{judge}:worse", "weight": 0.0}]},
        training=training | {"stop": {"by": "gold", "patience": 2}},
    )
    done = cli("train", gold)
    assert done.code == 0, done.err
    assert "step 4: stopped early: the held-out reward was highest at step 0 (0)" in done.out
    with RunReader(tmp_path / "gold") as run:
        assert run.metrics()["loss"][0].tolist() == [1, 2, 3, 4]
        assert run.metrics()["eval_reward"][0].tolist() == [0, 2, 4]
        assert "eval_reward" in run.summary["after"]


def test_rules_that_cannot_work_are_refused(tmp_path: Path):
    write_data(tmp_path)
    for rule, says in (
        ({"by": "gold"}, "by gold watches the held-out reward: it needs an eval section"),
        ({"by": "disagreement"}, "at least 2, found 1"),
        ({"by": "silver"}, "expected 'gold' or 'disagreement'"),
        ({"by": "gold", "patiance": 3}, "did you mean 'patience'?"),
    ):
        done = cli("check", online(tmp_path, training={"steps": 2, "stop": rule}))
        assert done.code == 2
        assert says in done.err
