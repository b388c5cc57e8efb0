from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from gro.errors import GroError
from gro.runs import DiskError, RolloutRecord, Run, RunReader, files
from gro.runs.identity import differences
from gro.runs.lock import owner
from runs.faults import damage, fail_at, killed_at, operations_of

CONFIG = {"algorithm": {"name": "gro", "beta": 0.1}, "lr": 3e-4, "log": {"every": 1}}


def rollout(row: int, group: int = 0, **changes: object) -> RolloutRecord:
    values: dict[str, object] = {
        "prompt": f"prompt {group}",
        "prompt_ids": [1, 2, group],
        "completion": f"completion {row}",
        "completion_ids": [7, 8, 2**31 - 1],
        "reward": row / 4,
        "finish": "stop",
        "tokens": {"logp": [-0.5, -0.25, -float(row)]},
    } | changes
    return RolloutRecord(group=group, row=row, **values)  # type: ignore[arg-type]


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", CONFIG) as run:
        assert run.last_step is None
        run.record(0, {"eval/accuracy": 0.25})
        run.record_rollouts(1, [rollout(0), rollout(1, rewards={"exact": 1.0, "style": None}), rollout(2, group=1)])
        run.record(1, {"loss": 0.1, "reward": 0.5})
        run.record(2, {"loss": 1 / 3})
        run.record(1, {"grad_norm": 2.0})  # other names of a recorded step; its rollouts are not written again
        run.record(2, {"eval/accuracy": 0.75})
        assert run.last_step == 2
        assert RunReader(run.path).status == "running"
        assert RunReader(run.path).owner is not None
        run.finish(after={"accuracy": 0.9}, tokens=np.int64(5))

    reader = RunReader(tmp_path / "r")
    assert reader.status == "finished"
    assert reader.owner is None
    assert reader.config == CONFIG
    assert reader.summary == {"after": {"accuracy": 0.9}, "tokens": 5}
    metrics = {name: (s.tolist(), v.tolist()) for name, (s, v) in reader.metrics().items()}
    assert metrics == {
        "eval/accuracy": ([0, 2], [0.25, 0.75]),
        "grad_norm": ([1], [2.0]),
        "loss": ([1, 2], [0.1, 1 / 3]),
        "reward": ([1], [0.5]),
    }
    assert [reader.metric(name)[1].tolist() for name in ("loss", "absent")] == [[0.1, 1 / 3], []]
    assert reader.times()[0].tolist() == [0, 1, 2]
    assert reader.started is not None
    assert reader.ended is not None
    assert reader.started <= reader.times()[1][0] <= reader.times()[1][2] <= reader.ended <= time.time()
    assert reader.rollout_steps() == [1]
    first, second, third = reader.rollouts(1)
    assert (first.prompt, first.prompt_ids, first.completion) == ("prompt 0", [1, 2, 0], "completion 0")
    assert first.completion_ids == [7, 8, 2**31 - 1]
    assert (second.reward, second.rewards, second.finish) == (0.25, {"exact": 1.0, "style": None}, "stop")
    assert second.tokens["logp"].tolist() == [-0.5, -0.25, -1.0]
    assert (third.group, third.prompt_ids) == (1, [1, 2, 1])
    assert [(s, r.row) for s, r in reader.extremes(best=True, limit=2)] == [(1, 2), (1, 1)]
    assert [(s, r.row) for s, r in reader.extremes(best=False, limit=1)] == [(1, 0)]
    assert reader.versions["torch"] == torch.__version__
    assert reader.versions["threads"] == torch.get_num_threads()


def test_per_token_quantities_of_every_kind(tmp_path: Path) -> None:
    nan = math.nan
    tokens = {
        "logp": torch.tensor([-1.5, 0.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
        "advantage": np.float64(0.7),
        "sampler": [nan, -0.5, nan],
        "ref": [nan] * 3,
        "old": None,
    }
    with Run.open(tmp_path / "r", {}) as run:
        run.record_rollouts(1, [rollout(0, tokens=tokens), rollout(1, completion_ids=[], tokens={"logp": []})])
        run.record(1, {})
    first, empty = RunReader(run.path).rollouts(1)
    assert set(first.tokens) == {"logp", "advantage", "sampler"}
    assert first.tokens["logp"].tolist() == [-1.5, 0.0, 2.0]
    assert first.tokens["advantage"].tolist() == [np.float32(0.7)] * 3
    np.testing.assert_array_equal(first.tokens["sampler"], [nan, -0.5, nan])
    assert (empty.completion_ids, dict(empty.tokens)) == ([], {})


def test_a_quantity_of_the_wrong_length_is_refused_and_nothing_is_recorded(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        run.record_rollouts(1, [rollout(0), rollout(1, tokens={"old": [1.0, 2.0]})])
        with pytest.raises(ValueError, match="old has 2 values for 3 tokens"):
            run.record(1, {"loss": 1.0})
        assert run.last_step is None
        assert RunReader(run.path).rollouts(1) == []


def test_what_is_not_finite_is_missing_with_an_event(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        run.record_rollouts(3, [rollout(0, reward=math.inf, tokens={"coefficient": [1.0, math.inf, 0.0]})])
        run.record(3, {"kl": math.nan, "loss": -math.inf, "reward": 1.0})
    reader = RunReader(run.path)
    metrics = reader.metrics()
    assert np.isnan(metrics["kl"][1]).tolist() == [True]
    assert np.isnan(metrics["loss"][1]).tolist() == [True]
    raw = sqlite3.connect(run.path / "run.db").execute("SELECT value FROM metrics ORDER BY name").fetchall()
    assert raw == [(None,), (None,), (1.0,)]
    assert reader.rollouts(3)[0].reward is None
    assert reader.rollouts(3)[0].tokens["coefficient"].tolist() == [1.0, math.inf, 0.0]
    assert [(e.level, e.step, e.message) for e in reader.events() if e.level == "warning"] == [
        ("warning", 3, "kl is nan at step 3"),
        ("warning", 3, "loss is -inf at step 3"),
        ("warning", 3, "the reward of row 0 is inf at step 3"),
        ("warning", 3, "coefficient of row 0 is infinite at step 3"),
    ]


def test_any_text_can_be_kept(tmp_path: Path) -> None:
    hostile = "a\x00b\x1b[31m\ud800</script>'; DROP TABLE rollouts; --\u202e🙂"
    with Run.open(tmp_path / "r", {"prompt": hostile}) as run:
        run.record_rollouts(1, [rollout(0, prompt=hostile, completion=hostile)])
        run.record(1, {"a'\"b": 1.0})
        run.event("warning", hostile, 1, text=hostile, path=Path("x"), bad=math.nan)
        run.reject({"row": 3, "text": hostile})
    reader = RunReader(run.path)
    kept = hostile.replace("\ud800", "\\ud800")
    assert reader.rollouts(1)[0].completion == kept
    assert reader.rollouts(1)[0].prompt == kept
    assert reader.config == {"prompt": kept}
    assert "a'\"b" in reader.metrics()
    event = reader.events()[-1]
    assert (event.message, event.data) == (kept, {"text": kept, "path": "x", "bad": None})
    assert json.loads((run.path / "rejected.jsonl").read_text()) == {"row": 3, "text": kept}


def test_a_step_is_recorded_once(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        run.record(1, {"loss": 1.0})
        with pytest.raises(ValueError, match="step 1 is recorded already"):
            run.record(1, {"loss": 2.0, "kl": 1.0})
        assert {name: v.tolist() for name, (_, v) in RunReader(run.path).metrics().items()} == {"loss": [1.0]}


def test_rewinding_forgets_later_steps_whole(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        for step in (1, 2, 3):
            run.record_rollouts(step, [rollout(0)])
            run.record(step, {"loss": float(step)})
            run.event("warning", f"alarm {step}", step)
        run.record_rollouts(4, [rollout(0)])
        assert run.rewind(1) == 2
        assert run.rewind(1) == 0
        assert run.last_step == 1
        run.record(2, {"loss": 20.0})
        run.record(4, {})
    reader = RunReader(run.path)
    assert reader.metrics()["loss"][1].tolist() == [1.0, 20.0]
    assert reader.rollout_steps() == [1]
    assert [e.message for e in reader.events() if e.step] == ["alarm 1"]
    tokens = sqlite3.connect(run.path / "run.db").execute("SELECT count(*) FROM tokens").fetchone()
    assert tokens == (1,)


# Who may open


def test_the_same_run_continues_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with Run.open(path, CONFIG):
        pass
    changed = CONFIG | {"lr": 1e-3, "seed": 1}
    with Run.open(path, changed) as run:  # nothing was recorded yet: a mistake in the settings may be put right
        run.record(1, {"loss": 1.0})
    with pytest.raises(GroError, match=r"holds another run: lr: 0.001 → 0.0003; seed: 1 → nothing\. Use the same"):
        Run.open(path, CONFIG)
    assert RunReader(path).config == changed
    with Run.open(path, changed) as run:
        assert run.last_step == 1
    assert [e.message for e in RunReader(path).events()][-1] == "continued; step 1 is the last recorded"


def test_settings_that_do_not_matter_may_differ(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", CONFIG) as run:
        run.record(1, {"loss": 1.0})
    now = CONFIG | {"log": {"every": 5, "to": "x"}}
    with pytest.raises(GroError, match=r"log\.every"):
        Run.open(tmp_path / "r", now)
    with Run.open(tmp_path / "r", now, may_differ=["log"]):
        pass
    assert RunReader(tmp_path / "r").config == now
    assert differences({"logs": 1}, {"logs": 2}, ["log"]) == ["logs: 1 → 2"]


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", CONFIG) as run:
        run.record(7, {"loss": 1.0})
        run.finish()
    with pytest.raises(GroError, match=r"holds a finished run \(last step 7, finished 20\d\d-"):
        Run.open(tmp_path / "r", CONFIG)
    Run.open(tmp_path / "other", CONFIG).close()  # the refusal left no lock of its own behind


def test_a_directory_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(GroError, match=r"is not empty and holds no run \(thesis\.tex\)"):
        Run.open(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DiskError, match=r"cannot create .*thesis\.tex.*: File exists"):
        Run.open(tmp_path / "thesis.tex", CONFIG)


def test_damaged_runs_are_named(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", CONFIG) as run:
        run.record(1, {})
    (tmp_path / "r" / "config.yaml").unlink()
    with pytest.raises(GroError, match=r"without its config\.yaml"):
        Run.open(tmp_path / "r", CONFIG)
    files.write_yaml(tmp_path / "r" / "config.yaml", CONFIG)
    (tmp_path / "r" / "run.db").write_bytes(b"not a database, but long enough to look like one" * 50)
    for action in (lambda: Run.open(tmp_path / "r", CONFIG), lambda: RunReader(tmp_path / "r")):
        with pytest.raises(GroError, match=r"run\.db: file is not a database"):
            action()
    with pytest.raises(GroError, match=r"is not a run directory: it has no run\.db"):
        RunReader(tmp_path)


def test_a_folder_of_runs_is_told_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for names, said in (
        ([], ""),
        (["b", "a"], "; runs in it: a, b"),
        (list("cdefg"), "; runs in it: a, b, c, d, e and 2 more"),
    ):
        for name in names:
            Run.open(tmp_path / name, CONFIG).close()
        with pytest.raises(GroError) as refused:
            RunReader(tmp_path)
        assert str(refused.value) == f"{tmp_path} is not a run directory: it has no run.db{said}"


def test_a_database_that_is_damaged_further_in_is_named(tmp_path: Path) -> None:
    """As a copy that was cut off or a disk that lost blocks leaves it: what was read before was whole."""
    with Run.open(tmp_path / "r", CONFIG) as run:
        for step in range(1, 400):
            run.event("info", "x" * 100)
            run.record(step, {"loss": 1.0, "reward": 2.0})
    damage(tmp_path / "r" / "run.db")
    with RunReader(tmp_path / "r") as reader, pytest.raises(GroError, match=r"cannot read .*/r/run\.db: .*malformed"):
        reader.metrics()
    with pytest.raises(GroError, match=r"cannot read .*/r/run\.db: .*malformed"):
        Run.open(tmp_path / "r", CONFIG)


def test_a_database_that_is_damaged_while_a_run_goes_on_is_named(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", CONFIG)
    run.record(1, {"loss": 1.0})
    with sqlite3.connect(tmp_path / "r" / "run.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(tmp_path / "r" / "run.db")
    with pytest.raises(GroError, match=r"cannot record an event in .*/r/run\.db: the file is damaged: .*malformed"):
        run.event("info", "it went on")
    run.close()
    assert owner(tmp_path / "r" / "lock") is None


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Run.open(tmp_path / "r", CONFIG).close()
    database = sqlite3.connect(tmp_path / "r" / "run.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    for action in (lambda: Run.open(tmp_path / "r", CONFIG), lambda: RunReader(tmp_path / "r")):
        with pytest.raises(GroError, match="has schema 99; this version"):
            action()


@pytest.mark.fault("P9")
def test_a_run_may_be_moved_and_named_strangely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Run.open("run", CONFIG) as run:
        monkeypatch.chdir("/")
        run.record(1, {"loss": 1.0})
        run.failure("reward", "boom", 1)
    strange = tmp_path / "späce %41?mode=x#y"
    (tmp_path / "run").rename(strange)
    assert RunReader(strange).metrics()["loss"][1].tolist() == [1.0]
    with Run.open(strange, CONFIG) as run:
        run.record(2, {"loss": 2.0})
    for path in strange.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.fault("P9")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody who may not write")
def test_reading_what_may_not_be_written(tmp_path: Path) -> None:
    base = Path("/tmp") / f"gro-readonly-{os.getpid()}"
    try:
        with Run.open(base, CONFIG) as run:
            run.record(1, {"loss": 0.5})
        for path in (base, *base.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                reader = RunReader(base)
                os._exit(0 if reader.metrics()["loss"][1].tolist() == [0.5] and reader.owner is None else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        shutil.rmtree(base, ignore_errors=True)


# Failures


def test_failures_are_kept_in_files(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        first = run.failure("Reward: my/fn", "Traceback …\nValueError: boom", step=4)
        second = run.failure("Reward: my/fn", "again\n")
    assert first is not None
    assert second is not None
    assert [first.relative_to(run.path).as_posix(), second.name] == [
        "failures/reward-my-fn-001.txt",
        "reward-my-fn-002.txt",
    ]
    assert first.read_text() == "Traceback …\nValueError: boom"
    event = RunReader(run.path).events()[-2]
    assert (event.level, event.step, event.message) == ("error", 4, "Reward: my/fn: ValueError: boom")
    assert event.data == {"file": "failures/reward-my-fn-001.txt"}


def test_what_ended_a_run_is_told_from_its_beginning(tmp_path: Path) -> None:
    with pytest.raises(GroError), Run.open(tmp_path, {}):
        raise GroError("the cause\nand more of it")
    assert [e.message for e in RunReader(tmp_path).events() if e.level == "error"] == ["stopped: GroError: the cause"]


def test_failures_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gro.runs.store.MOST_FAILURES", 3)
    with Run.open(tmp_path / "r", {}) as run:
        kept = [run.failure("reward", "x") is not None for _ in range(5)]
    assert kept == [True, True, True, False, False]
    assert sum(e.level == "error" for e in RunReader(run.path).events()) == 5


def stop(path: Path, error: BaseException) -> None:
    with Run.open(path, {}):
        raise error


def test_the_reason_for_a_stop_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        stop(tmp_path / "r", RuntimeError("out of luck"))
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "r", KeyboardInterrupt())
    reader = RunReader(tmp_path / "r")
    assert reader.status == "interrupted"
    assert [e.message for e in reader.events() if e.level != "info"] == [
        "stopped: RuntimeError: out of luck",
        "stopped by KeyboardInterrupt",
    ]
    assert "raise error" in (tmp_path / "r" / "failures" / "stopped-001.txt").read_text()


@pytest.mark.fault("P4")
def test_disk_full_at_each_operation_of_recording(tmp_path: Path) -> None:
    """Whatever is refused, what was recorded stays; once there is room the same call goes through."""

    def full(operation: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Run.open(tmp_path / "r", {}) as run:
        run.record(1, {"loss": 1.0})
        run.record_rollouts(2, [rollout(0)])
        with files.observed(full):
            for action in (
                lambda: run.record(2, {"loss": 2.0}),
                lambda: run.event("info", "x"),
                lambda: run.reject({}),
                lambda: run.rewind(0),
                lambda: run.finish(),
            ):
                with pytest.raises(DiskError, match=r"No space left on device .*free"):
                    action()
        assert RunReader(run.path).metrics()["loss"][1].tolist() == [1.0]
        run.record(2, {"loss": 2.0})
    reader = RunReader(run.path)
    assert reader.metrics()["loss"][1].tolist() == [1.0, 2.0]
    assert len(reader.rollouts(2)) == 1
    assert reader.status == "interrupted"


@pytest.mark.fault("P4")
def test_a_database_that_is_really_full(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        run.record(1, {"loss": 1.0})
        connection = run._database._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        run.record_rollouts(2, [rollout(i, completion="x" * 10_000) for i in range(8)])
        with pytest.raises(DiskError, match=r"cannot record step 2 in .*run\.db: database or disk is full; .* free"):
            run.record(2, {"loss": 2.0})
        assert RunReader(run.path).rollouts(2) == []
        connection.execute("PRAGMA max_page_count = 100000")
        run.record(2, {"loss": 2.0})
    assert len(RunReader(run.path).rollouts(2)) == 8


# Kills


def a_whole_run(path: Path) -> None:
    with Run.open(path, CONFIG) as run:
        for step in range((run.last_step or 0) + 1, 4):
            run.record_rollouts(step, [rollout(0)])
            run.record(step, {"loss": 1 / step})
        run.failure("reward", "boom")
        run.finish()


def is_finished(path: Path) -> bool:
    try:
        return RunReader(path).status == "finished"
    except GroError as error:
        return "no run.db" not in str(error) and "no run yet" not in str(error)


@pytest.mark.fault("P2")
def test_killed_at_every_operation_the_same_command_completes_the_run(tmp_path: Path) -> None:
    count = len(operations_of(lambda: a_whole_run(tmp_path / "whole")))
    assert count > 20
    for n in range(count):
        path = tmp_path / str(n)
        assert killed_at(n, lambda path=path: a_whole_run(path))
        finished = is_finished(path)
        assert finished == (n >= count - 2)  # after it come only the end of the session and of the lock
        if not finished:
            a_whole_run(path)
        reader = RunReader(path)
        assert reader.status == "finished"
        assert reader.metrics()["loss"][1].tolist() == [1.0, 1 / 2, 1 / 3]
        assert reader.rollout_steps() == [1, 2, 3]
        assert list(path.rglob(".*")) == []


@pytest.mark.fault("P4")
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, *(pytest.param(n, marks=pytest.mark.slow) for n in (errno.EIO, errno.EDQUOT, errno.EFBIG))]
)
def test_the_disk_refuses_at_every_operation_and_then_has_room(tmp_path: Path, number: int) -> None:
    count = len(operations_of(lambda: a_whole_run(tmp_path / "whole")))
    for n in range(count):
        path = tmp_path / str(n)
        with files.observed(fail_at(n, number)):
            # The end of a session is not worth failing a finished run for.
            refused = nullcontext() if n == count - 2 else pytest.raises(DiskError, match=os.strerror(number))
            with refused:
                a_whole_run(path)
        if not is_finished(path):
            a_whole_run(path)
        assert RunReader(path).metrics()["loss"][1].tolist() == [1.0, 1 / 2, 1 / 3]


RECORDER = """
import sys
from gro.runs import RolloutRecord, Run
with Run.open(sys.argv[1], {"seed": 1}) as run:
    step = run.last_step or 0
    print("from", step, flush=True)
    while True:
        step += 1
        run.record_rollouts(step, [RolloutRecord(group=i // 2, row=i, prompt="p" * 200, prompt_ids=[1, i // 2],
            completion="c" * 300, completion_ids=list(range(50)), tokens={"logp": [step / 8] * 50}) for i in range(6)])
        run.record(step, {"loss": 1 / step, "reward": step})
        print(step, flush=True)
"""


@pytest.mark.fault("P1")
def test_killed_while_recording_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "r"
    chance = random.Random(0)
    acknowledged = 0
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", RECORDER, str(path)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdout is not None
        assert int(process.stdout.readline().split()[1]) in (acknowledged, acknowledged + 1)  # taken up by itself
        time.sleep(chance.uniform(0.01, 0.15))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split()
        process.wait()
        acknowledged = max(acknowledged, int(lines[-1]) if lines else 0)

        reader = RunReader(path)
        assert reader.status == "interrupted"
        steps, losses = reader.metrics()["loss"]
        last = len(steps)
        assert last in (acknowledged, acknowledged + 1)  # the kill may fall between the commit and the print
        assert steps.tolist() == list(range(1, last + 1))
        assert losses.tolist() == [1 / step for step in steps]
        assert reader.rollout_steps() == steps.tolist()
        for step in (1, last):
            assert [r.row for r in reader.rollouts(step)] == list(range(6))
            assert all(r.tokens["logp"].tolist() == [np.float32(step / 8)] * 50 for r in reader.rollouts(step))
        check = sqlite3.connect(path / "run.db").execute("PRAGMA integrity_check").fetchone()
        assert check == ("ok",)
        took_over = [e for e in reader.events() if e.message.startswith("took over from process ")]
        assert len(took_over) == attempt
    assert acknowledged > 5
