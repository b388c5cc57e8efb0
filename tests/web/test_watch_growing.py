"""Runs that change while they are watched: what is read step by step is what is there."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_runs import config, made, rewards, sample, watched

from gro.runs import Run, RunReader
from gro.web.watch.board import Board
from gro.web.watch.watched import Watched


def same(found: Any, wanted: Any) -> None:
    """Equal, with NaN equal to itself."""
    assert list(found) == list(wanted)
    for name, (steps, values) in wanted.items():
        np.testing.assert_array_equal(found[name][0], steps)
        np.testing.assert_array_equal(found[name][1], values)


def agrees(watched: Watched) -> None:
    """What is known is what reading the whole run says."""
    with RunReader(watched.path) as run:
        same(watched.known.series.metrics, run.metrics())
        alarms = [(event.level, event.step, event.message) for event in run.events() if event.level != "info"]
        assert [(a["level"], a["step"], a["message"]) for a in watched.known.alarms] == alarms
        assert watched.known.facts()["step"] == run.last_step
        assert watched.known.status == run.status


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 30)),
        st.tuples(st.just("more"), st.sampled_from(["eval_reward", "late", "a"])),
        st.tuples(st.just("alarm"), st.booleans()),
        st.tuples(st.just("rewind"), st.integers(0, 8)),
        st.tuples(st.just("again"), st.none()),
    ),
    max_size=10,
)


@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS, looks=st.sets(st.integers(0, 9)))
def test_what_is_read_bit_by_bit_is_the_whole(
    tmp_path_factory: pytest.TempPathFactory, actions: Any, looks: Any
) -> None:
    """Steps, more of a step, NaN, steps forgotten and done again, and a second process, looked at in between or not."""
    path = tmp_path_factory.mktemp("growing") / "run"
    run, step = Run.open(path, config()), 0
    one = Watched("run", path)
    for turn, (what, argument) in enumerate(actions):
        if what == "steps":
            for _ in range(argument):
                step += 1
                run.record(step, {"reward": step * 1.5 + turn, "odd": float("nan") if step % 3 else 1.0})
        elif what == "more":
            if step and argument not in RunReader(path).metrics(step):
                run.record(step, {argument: float(turn)})
        elif what == "alarm":
            run.event("warning" if argument else "info", f"alarm {turn}", step=step)
        elif what == "rewind":
            step = max(0, step - argument)
            run.rewind(step)
        else:
            run.close()
            run = Run.open(path, config())
        if turn in looks:
            one.refresh()
            agrees(one)
    one.refresh()
    agrees(one)
    assert not one.refresh()
    run.finish()
    run.close()
    assert one.refresh()
    agrees(one)


def test_an_alarm_of_a_step_that_was_not_done_is_forgotten_with_it(tmp_path: Path) -> None:
    """A run that is killed in a step and begun again while nobody looks: no step is known that has gone."""
    one = Watched("run", tmp_path / "run")
    with Run.open(tmp_path / "run", config()) as run:
        run.record(1, {"reward": 1.0})
        for number in range(3):
            run.event("warning", f"before {number}", step=2)
        one.refresh()
        agrees(one)
    with Run.open(tmp_path / "run", config()) as run:
        run.rewind(1)
        run.event("warning", "after", step=2)
        one.refresh()
        agrees(one)


def test_a_reader_can_begin_at_a_step(tmp_path: Path) -> None:
    made(tmp_path / "run", [{"a": 1.0, "b": 2.0}, {"a": 3.0}, {"b": 4.0, "c": 5.0}])
    with RunReader(tmp_path / "run") as run:
        found = {name: (steps.tolist(), values.tolist()) for name, (steps, values) in run.metrics(since=2).items()}
        assert found == {"a": ([2], [3.0]), "b": ([3], [4.0]), "c": ([3], [5.0])}
        assert run.metrics(since=4) == {}
        assert run.times(since=2)[0].tolist() == [2, 3]
        assert list(run.metrics()) == ["a", "b", "c"]


def test_prompts_are_told_apart_by_key_and_text(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config()) as run:
        for step in (1, 2):
            run.record_rollouts(step, [sample(0, 0, "p", "x", 1.0), sample(1, 1, "p", "x", 1.0)])
            run.record_rollouts(step, [sample(2, 2, f"q{step}", "x", 1.0)])
            run.record(step, {})
    with RunReader(tmp_path / "run") as reader:
        assert reader.prompts() == {(0, "p"): [1, 2], (1, "p"): [1, 2], (2, "q1"): [1], (2, "q2"): [2]}


def test_the_trainer_is_not_held_back(tmp_path: Path) -> None:
    """No reader stays open: the log can always be written back, which an open reading transaction would prevent."""
    board = Board([tmp_path])
    with Run.open(tmp_path / "run", config()) as run:
        for step in range(1, 50):
            run.record(step, {"reward": float(step)})
            board.refresh()
        with sqlite3.connect(tmp_path / "run" / "run.db", timeout=0) as writer:
            busy, left, _ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert (busy, left) == (0, 0)
        board.refresh()
        agrees(board.runs["run"])


def test_new_runs_are_found_and_names_tell_them_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    board = Board([one, two, one])
    assert board.refresh()
    assert board.runs == {}
    rewards(one / "grpo", 1.0)
    (one / "no run").mkdir()
    (one / "a file").write_text("x")
    board.refresh()
    assert list(board.runs) == ["grpo"]
    rewards(two / "grpo", 2.0)
    rewards(two / "dpo", 3.0)
    board.refresh()
    assert list(board.runs) == ["grpo", "dpo", "two/grpo"]  # a name once given stays
    assert [known.facts()["value"] for known in board.known().values()] == [1.0, 3.0, 2.0]
    both = Board([one, two / "dpo", one / "grpo"])
    both.refresh()
    assert list(both.runs) == ["grpo", "dpo"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    rewards(tmp_path / "run-\udcff", 1.0)
    with watched(tmp_path) as (server, _):
        assert server.get("/api/watch/runs")[1]["runs"][0]["name"] == "run-\\udcff"
        assert server.get("/api/watch/panels?run=run-%5Cudcff")[1]["panels"][0]["key"] == "reward"


def test_a_run_that_goes_wrong_leaves_the_rest(tmp_path: Path) -> None:
    for name in ("good", "gone", "replaced", "newer", "broken", "empty", "keyless"):
        rewards(tmp_path / name, 1.0, 2.0)
    with watched(tmp_path) as (server, _):
        server.get("/api/watch/runs")
        shutil.rmtree(tmp_path / "gone")
        shutil.rmtree(tmp_path / "replaced")
        rewards(tmp_path / "replaced", 7.0, algorithm="rloo")
        with sqlite3.connect(tmp_path / "newer" / "run.db") as database:
            database.execute("PRAGMA user_version = 99")
        (tmp_path / "broken" / "run.db").write_bytes(b"this is no database" * 1000)
        (tmp_path / "empty" / "run.db").write_bytes(b"")
        (tmp_path / "keyless" / "config.yaml").write_text("")
        (tmp_path / "keyless" / "run.db").touch()
        runs = {run["name"]: run for run in server.get("/api/watch/runs")[1]["runs"]}
        told = {name: (run["status"], run["value"]) for name, run in runs.items()}
        assert told == {
            "good": ("finished", 2.0), "gone": ("gone", 2.0), "replaced": ("finished", 7.0),
            "newer": ("unreadable", None), "broken": ("unreadable", None), "empty": ("unreadable", None),
            "keyless": ("unreadable", None),
        }  # fmt: skip
        assert runs["replaced"]["algorithm"] == "rloo"
        assert "holds no run any more" in runs["gone"]["problem"]
        assert "has schema 99; this version of gro reads schema 1" in runs["newer"]["problem"]
        assert "file is not a database" in runs["broken"]["problem"]
        assert "holds no run yet" in runs["empty"]["problem"]
        assert "is not the configuration of a run" in runs["keyless"]["problem"]
        status, found = server.get("/api/watch/panels?smooth=0&seeds=0&" + "&".join(f"run={name}" for name in runs))
        assert status == 200
        lines = {found["sources"][line["source"]][0]: line["values"] for line in found["panels"][0]["lines"]}
        assert lines == {"good": [1.0, 2.0], "gone": [1.0, 2.0], "replaced": [7.0]}
        for name in ("gone", "newer", "broken"):
            assert server.get(f"/api/watch/prompts?run={name}")[0] == 400
        versions = {name: run["version"] for name, run in runs.items()}
        runs = server.get("/api/watch/runs")[1]["runs"]
        assert {run["name"]: run["version"] for run in runs} == versions  # it is said once
        rewards(tmp_path / "gone", 9.0)
        assert {r["name"]: r["value"] for r in server.get("/api/watch/runs")[1]["runs"]}["gone"] == 9.0


def test_a_look_at_many_runs_ends_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is not kept waiting until all of them have been read."""
    for i in range(4):
        rewards(tmp_path / f"{i}", float(i))
    clock, refresh = [0.0], Watched.refresh

    def slow(self: Watched) -> bool:
        """Reading a run takes 0.6 s, looking whether there is anything to read nothing."""
        read = refresh(self)
        clock[0] += 0.6 * read
        return read

    monkeypatch.setattr(Watched, "refresh", slow)
    monkeypatch.setattr("gro.web.watch.board.time", SimpleNamespace(monotonic=lambda: clock[0]))
    board = Board([tmp_path])
    assert not board.refresh()
    assert [known.status for known in board.known().values()] == ["finished", "finished", "unread", "unread"]
    assert not board.refresh()  # the other two, and none has been looked at again
    assert [known.facts()["value"] for known in board.known().values()] == [0.0, 1.0, 2.0, 3.0]
    assert board.refresh()
