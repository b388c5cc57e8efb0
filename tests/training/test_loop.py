"""The loop: what happens in which order, with collaborators that only write down that they were asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gro.algorithms import build
from gro.errors import GroError
from gro.objective import Algorithm
from gro.policy.policy import Policy
from gro.training import loop
from gro.training.batching import Minibatch
from gro.training.critic import CriticUpdate
from gro.training.learner import Learner, Update
from gro.training.loop import Warmup, train
from gro.training.settings import Portions
from gro.training.sources import Stateless
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

POLICY = Policy(tiny_model(layers=1), tiny_tokenizer())


@dataclass
class Diary(Stateless):
    """Source, learner and recorder in one."""

    name: str = "policy"
    groups: int = 4
    declines: int | None = None
    """Which of the updates of the run is declined."""
    written: list[str] = field(default_factory=list)
    updates: int = 0
    observed: Mapping[str, float] = field(default_factory=dict)
    ended: str | None = None
    alarm: int | None = None
    """The step at which an alarm ends the run."""

    def take(self, step: int) -> list[Group]:
        self.written.append(f"take {step}")
        return [Group(Prompt((5,), key=k), (Completion((6, 7), role="target"),)) for k in range(self.groups)]

    def receive(self, policy: Policy, step: int) -> None:
        self.written.append(f"receive {step}")

    def update(self, minibatch: Minibatch) -> Update | CriticUpdate:
        keys = "".join(str(g.prompt.key) for g in minibatch.groups)
        self.written.append(f"{self.name} {minibatch.batch.epoch}: {keys}")
        if self.name == "critic":
            return CriticUpdate({})
        declined = self.updates == self.declines
        self.updates += 1
        zeros = torch.zeros(minibatch.batch.mask_BT.shape)
        return Update({}, minibatch.groups, minibatch.batch, zeros, None, zeros, declined)

    def step(self, step: int, result: Any) -> None:
        self.written.append(f"record {step} of {len(result.updates)}")
        if step == self.alarm:
            self.ended = "an alarm"

    def evaluated(self, step: int, evaluate: Any) -> None:
        self.written.append(f"evaluate {step}")


def run(diary: Diary, portions: Portions, learners: list[Learner] | None = None, **settings: Any) -> list[str]:
    algorithm: Algorithm = build("sft")
    recorder: Any = diary
    train(POLICY, diary, algorithm, learners or [diary], portions, recorder, **settings)
    return diary.written


def test_steps_in_order() -> None:
    written = run(Diary(), Portions(steps=3, epochs=2, eval_every=2))
    assert written == [
        *("take 0", "policy 0: 0123", "policy 1: 0123", "receive 0", "record 1 of 2"),
        *("take 1", "policy 0: 0123", "policy 1: 0123", "receive 1", "record 2 of 2", "evaluate 2"),
        *("take 2", "policy 0: 0123", "policy 1: 0123", "receive 2", "record 3 of 2", "evaluate 3"),
    ]


def test_a_rule_ends_the_run_with_an_evaluation() -> None:
    asked = []

    def stops(step: int) -> bool:
        asked.append(step)
        return step == 3

    written = run(Diary(), Portions(steps=9, eval_every=2), stops=stops)
    assert [line for line in written if line[0] in "re"] == [
        *("receive 0", "record 1 of 1", "receive 1", "record 2 of 1", "evaluate 2"),
        *("receive 2", "record 3 of 1", "evaluate 3"),
    ]
    assert asked == [1, 2, 3]
    assert run(Diary(), Portions(steps=2, eval_every=2), stops=lambda step: step == 2)[-2:] == [
        "record 2 of 1",
        "evaluate 2",
    ], "evaluated once where both are due"


@pytest.mark.parametrize(("alarm", "end"), [(2, ["evaluate 2", "keep 2"]), (3, ["evaluate 3"])])
def test_an_alarm_ends_the_run_when_all_of_its_step_is_kept(alarm: int, end: list[str]) -> None:
    """Evaluations that are due belong to the step, or a continued run would lack them."""
    diary = Diary(alarm=alarm)

    def keep(step: int, state: Any) -> None:
        diary.written.append(f"keep {step}")

    with pytest.raises(GroError, match="an alarm"):
        run(diary, Portions(steps=3, eval_every=1), keep=keep)
    assert diary.written[diary.written.index(f"record {alarm} of 1") + 1 :] == end


def test_waiting_for_people_is_no_time_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the groups lasts 100 seconds, 90 of them waiting, and an update 5."""
    now, waited, results = [1000.0], [7.0], []

    class Slow(Diary):
        def take(self, step: int) -> list[Group]:
            now[0] += 100
            waited[0] += 90
            return super().take(step)

        def update(self, minibatch: Minibatch) -> Update | CriticUpdate:
            now[0] += 5
            return super().update(minibatch)

        def step(self, step: int, result: Any) -> None:
            results.append((result.rollout_seconds, result.seconds, result.waiting_seconds))

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    run(Slow(), Portions(steps=2), waited=lambda: waited[0])
    assert results == [(10.0, 15.0, 90.0)] * 2


def test_every_learner_sees_every_minibatch_and_each_group_once_per_pass() -> None:
    diary = Diary()
    critic = Diary("critic", written=diary.written)
    written = run(diary, Portions(steps=1, epochs=2, minibatches=2), [diary, critic])
    policy = [line for line in written if line.startswith("policy")]
    assert [line.replace("policy", "critic") for line in policy] == [x for x in written if x.startswith("critic")]
    for epoch in "01":
        seen = "".join(line.split(": ")[1] for line in policy if line.startswith(f"policy {epoch}"))
        assert sorted(seen) == list("0123")


def test_a_declined_update_ends_the_step_and_not_the_run() -> None:
    diary = Diary(declines=1)
    critic = Diary("critic", written=diary.written)
    written = run(diary, Portions(steps=2, epochs=3), [diary, critic])
    assert [line.split(":")[0] for line in written if line[:2] in ("po", "cr")] == [
        *("policy 0", "critic 0", "policy 1"),  # the critic does not go on without the policy
        *("policy 0", "critic 0", "policy 1", "critic 1", "policy 2", "critic 2"),
    ]


def test_the_first_steps_are_the_critics() -> None:
    diary = Diary()
    critic = Diary("critic", written=diary.written)
    written = run(diary, Portions(steps=3), warmup=Warmup(2, [critic]))
    assert [line.split()[0] for line in written if line[:2] in ("po", "cr")] == ["critic", "critic", "policy"]


@pytest.mark.parametrize(("groups", "updates"), [(1, 1), (3, 3), (4, 3)])
def test_no_more_minibatches_than_groups(groups: int, updates: int) -> None:
    diary = Diary(groups=groups)
    run(diary, Portions(steps=1, minibatches=3))
    assert diary.updates == updates
