"""Alarms in whole runs: what was made wrong is named, shown and kept, and a run in which nothing is wrong has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import gro.training.prepare as preparing
from gro.engines.local import LocalEngine
from gro.runs import RunReader
from gro.types import Completion
from jobs_on_sums import MODEL, Done, cli, online, sft, write_data

REWARDS = """
def one(completions, **_):
    return [1.0] * len(completions)

def length(completions, **_):
    return [float(len(c)) for c in completions]
"""


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alarms")
    write_data(folder)
    (folder / "mine.py").write_text(REWARDS)
    assert cli("train", sft(folder, training={"steps": 30}, eval=None, rewards=[])).code == 0
    return folder


def run(folder: Path, name: str, **keys: Any) -> Done:
    keys = {"training__steps": 4, "eval": None, "sampling": {"max_new_tokens": 5}} | keys
    rewards = keys.pop("rewards", [f"{folder}/mine.py:length"])
    return cli("train", online(folder, name=name, rewards=rewards, group_size=4, **keys))


def alarms(folder: Path, name: str) -> list[tuple[str, int | None]]:
    """Which were raised, and at which step; each is an event with its value and limit, and told on the page."""
    with RunReader(folder / name) as reader:
        events = [e for e in reader.events() if e.level == "warning" and "alarm" in e.data]
        for event in events:
            assert {"alarm", "value", "limit"} <= event.data.keys()
            assert event.message.startswith(f"{event.data['alarm']}: ")
        return [(e.data["alarm"], e.step) for e in events]


@contextmanager
def sampled_wrongly(change: Callable[[tuple[Completion, ...]], tuple[Completion, ...]]) -> Iterator[None]:
    """Every prompt's completions are changed behind the engine's back."""
    generate = LocalEngine.generate

    def lies(self: LocalEngine, *args: Any, **how: Any) -> list[tuple[Completion, ...]]:
        return [change(completions) for completions in generate(self, *args, **how)]

    with mock.patch.object(LocalEngine, "generate", lies):
        yield


@pytest.mark.fault("N3", "N5", "M6")
@pytest.mark.parametrize("how", [{}, {"training__epochs": 2}, {"algorithm": {"name": "gro"}}])
def test_nothing_is_raised_where_nothing_is_wrong(sums: Path, how: dict[str, Any]) -> None:
    name = f"healthy-{len(str(how))}"
    done = run(sums, name, training__steps=8, **how)
    assert done.code == 0, done.err
    assert alarms(sums, name) == []
    with RunReader(sums / name) as reader:
        metrics = reader.metrics()
    assert max(metrics["sampling/outside"][1]) == 0.0
    assert len(metrics["duplicates/share"][1]) == 8
    assert ("ratio/first" in metrics) == ("training__epochs" in how)
    assert len(metrics["kl/k1"][1]) == (1 if how.get("algorithm") else 8)  # every ten steps


@pytest.mark.fault("N3")
def test_a_sampler_that_lies_about_its_log_probs(sums: Path) -> None:
    """By 0.2 nats at each token: probabilities 18 % off.  The run ends at the third step."""

    def lie(completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return tuple(replace(c, logp=tuple(x - 0.2 for x in c.logp or ())) for c in completions)

    with sampled_wrongly(lie):
        done = run(sums, "gap")
    assert done.code == 2
    assert "stopped at step 3, the third such step in a row: sampler_apart: 100% of the tokens have" in done.err
    assert "Traceback" not in done.err
    assert alarms(sums, "gap") == [("sampler_apart", 1), ("sampler_gap", 2)]
    assert "step 1: sampler_apart: 100% of the tokens have probabilities more than 10 % apart" in done.out
    with sampled_wrongly(lie):
        told = run(sums, "gap-off", training__alarms={"sampler_gap": None, "sampler_apart": None})
    assert told.code == 0, told.err
    assert alarms(sums, "gap-off") == []


@pytest.mark.fault("M6")
def test_two_scores_of_the_same_weights_that_differ(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with dropout: the old policy's log-probs are 0.001 off those of the first update."""
    score = preparing.score
    monkeypatch.setattr(preparing, "score", lambda *args, **how: score(*args, **how) + 1e-3)
    done = run(sums, "ratio", training__epochs=2)
    assert done.code == 2
    assert "stopped at step 1, the first such step in a row: ratio: before the first update of the step" in done.err
    assert "dropout" in done.err
    assert alarms(sums, "ratio") == [("ratio", 1)]
    assert run(sums, "ratio-on", training__epochs=2, training__alarms={"ratio": 0.01}).code == 0


@pytest.mark.fault("C3")
def test_rewards_that_do_not_vary_end_the_run(sums: Path) -> None:
    done = run(sums, "flat", rewards=[f"{sums}/mine.py:one"], training__flat_steps=3)
    assert done.code == 2
    assert "stopped at step 3, the third such step in a row: flat_groups: no group has any variance" in done.err
    assert alarms(sums, "flat") == [("flat_groups", 1)]


@pytest.mark.fault("C3")
def test_too_few_tokens_for_any_answer(sums: Path) -> None:
    """The alarm comes at the first step, and what ends the run names the cause."""
    untrained = {"model": MODEL, "rewards": [f"{sums}/mine.py:one"], "sampling": {"max_new_tokens": 1}}
    done = run(sums, "cut", training__flat_steps=2, **untrained)
    assert done.code == 2
    assert alarms(sums, "cut") == [("flat_groups", 1), ("truncated", 1)]
    assert "stopped at step 2, the second such step in a row: flat_groups: " in done.err
    assert "Also truncated: 100% of the completions were cut off" in done.err
    assert "Raise sampling.max_new_tokens" in done.err


def test_samples_of_a_prompt_that_are_copies(sums: Path) -> None:
    def copy(completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return (completions[0],) * len(completions)

    with sampled_wrongly(copy):
        run(sums, "copies", sampling={"max_new_tokens": 5, "temperature": 2.0}, training__steps=3)
    assert ("duplicates", 2) in alarms(sums, "copies")


def test_the_report_shows_them(sums: Path) -> None:
    run(sums, "shown", rewards=[f"{sums}/mine.py:one"], training__steps=2)
    assert cli("report", sums / "shown").code == 0
    page = (sums / "shown" / "report.html").read_text("utf-8")
    start = page.index("<h2>Alarms</h2>")
    assert "flat_groups: no group has any variance" in page[start : page.index("</section>", start)]


def test_limits_are_checked_settings(sums: Path) -> None:
    def problem(**limits: Any) -> str:
        done = cli("check", online(sums, name="wrong", training={"steps": 1, "alarms": limits}))
        assert done.code == 2
        return done.err

    assert "training.alarms.ratios: unknown key, did you mean 'ratio'?" in problem(ratios=1.0)
    assert "training.alarms.ratio: found -1; expected at least 0" in problem(ratio=-1)
    assert "training.alarms.ratio: found true; expected a number" in problem(ratio=True)
    path = online(sums, name="off", training={"steps": 1})
    for given in ("off", "null", "3", "0.5"):
        assert cli("check", path, f"training.alarms.length_drift={given}").code == 0, given
