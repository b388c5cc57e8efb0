"""The recorder's state: what it goes on from is what it had, to the bit."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gro.algorithms import build
from gro.policy.policy import Policy
from gro.runs import RunReader
from gro.runs.progress import Progress
from gro.runs.store import Run
from gro.training.batching import collate
from gro.training.recording import Recorder, StepResult
from gro.training.settings import Portions, Stopping
from gro.training.stopping import Watch
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

POLICY = Policy(tiny_model(vocab_size=32, layers=1), tiny_tokenizer())


def result(*rewards: float) -> StepResult:
    """A step in which the policy rested; two rewards of every completion, which differ by its place."""
    answers = tuple(
        Completion((6, 7 + i), reward=r, rewards={"a": r, "b": r * (i + 0.1)}, finish="stop")
        for i, r in enumerate(rewards)
    )
    return StepResult(collate([Group(Prompt((5,), key=1), answers)], length_limit=None), [], 0.0, 1.0)


STEPS = [(0.0, 1.0), (1.0, 1.0), (0.3, 0.3), (0.1, 0.7), (2.0, 2.0), (2.0, 2.0), (0.2, 2.0)]
PORTIONS = Portions(steps=9, flat_steps=3, stop=Stopping("disagreement", patience=2, threshold=1.1))


def recorder_of(run: Run) -> Recorder:
    return Recorder(run, Progress(9), POLICY, build("grpo"), PORTIONS)


def seen(path: Path) -> tuple[dict, list]:
    with RunReader(path) as reader:
        metrics = {n: dict(zip(s.tolist(), v.tolist(), strict=True)) for n, (s, v) in reader.metrics().items()}
        return metrics, [(e.step, e.level, e.message) for e in reader.events() if e.step is not None]


def drive(recorder: Recorder, steps: range) -> Iterator[bool]:
    for step in steps:
        recorder.step(step, result(*STEPS[step - 1]))
        if step % 2 == 0:
            recorder.evaluated(step, lambda step=step: {"loss": math.inf if step == 2 else 0.1 * step})
        yield recorder.stops(step)


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_recorder_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    """Metrics, alarms and stops after a stop at step `cut` are those of the run that did not stop."""
    with Run.open(tmp_path / "whole", {}) as run:
        whole = recorder_of(run)
        stops = list(drive(whole, range(1, 8)))
        ended = whole.state()
    with Run.open(tmp_path / "cut", {}) as run:
        first = recorder_of(run)
        early = list(drive(first, range(1, cut + 1)))
        text = json.dumps(first.state(), allow_nan=False)
    with Run.open(tmp_path / "cut", {}) as run:
        second = recorder_of(run)
        second.load(json.loads(text))
        assert second.state() == first.state()
        assert early + list(drive(second, range(cut + 1, 8))) == stops
        assert second.state() == ended
    (metrics, events), (again, noted) = seen(tmp_path / "whole"), seen(tmp_path / "cut")
    assert noted == events
    assert any("no group has any variance" in message for _, _, message in events)
    assert again.keys() == metrics.keys()
    for name in metrics:
        assert str(again[name]) == str(metrics[name]), name  # nan too
    assert any(stops)
    assert not all(stops)
    assert second.evaluations == whole.evaluations
    assert second.evaluations[2] == {"eval_loss": math.inf}


def test_flat_steps_are_counted_across_a_stop(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", {}) as run:
        first = recorder_of(run)
        for step in (1, 2):
            first.step(step, result(1.0, 1.0))
        second = recorder_of(run)
        second.load(first.state())
        assert second.ended is None
        second.step(3, result(1.0, 1.0))
        assert second.ended is not None
        assert second.ended.startswith("stopped at step 3, the third such step in a row: flat_groups")
        third = recorder_of(run)
        third.load(second.state())
        assert third.ended == second.ended
        run.finish()


def test_a_line_has_what_was_measured_at_its_step_and_alarms_what_was_measured_last(tmp_path: Path) -> None:
    out = io.StringIO()
    with Run.open(tmp_path / "run", {}) as run:
        recorder = Recorder(run, Progress(9, "", out), POLICY, build("grpo"), PORTIONS)
        recorder.load(recorder.state() | {"kl": "6.5"})
        recorder.step(1, replace(result(0.0, 1.0), observed={"kl": 7.25}))
        recorder.step(2, result(0.0, 1.0))
        run.finish()
    lines = [line for line in out.getvalue().splitlines() if "  eta " in line]
    assert ["kl" in line for line in lines] == [True, False]
    assert "kl 7.25" in lines[0]
    assert "kl_explosion" in out.getvalue()


def test_what_a_rule_saw_survives_as_text() -> None:
    rule = Stopping("gold", patience=2)
    watch, again = Watch(rule), Watch(rule)
    for step, gold in enumerate((0.1 + 0.2, math.nan, -math.inf)):
        watch.evaluated(step, {"eval_reward": gold})
    again.load(json.loads(json.dumps(watch.state(), allow_nan=False)))
    assert str(again.state()) == str(watch.state())
    assert again.reason() == watch.reason() is not None
    assert again._seen[0] == 0.1 + 0.2
