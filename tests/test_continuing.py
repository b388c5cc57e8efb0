"""What may be other than before where an interrupted run is continued, and what may not."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from gro.objective.credit import State
from gro.runs import RunReader
from gro.training.checkpoint import Keeper
from gro.training.recording import Recorder
from jobs_on_sums import MODEL, SUMS, Done, cli, online, recipe, sft, write_data
from torture.compare import TIMES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a model to start from, and rewards that differ."""
    folder = tmp_path_factory.mktemp("continuing")
    write_data(folder)
    (folder / "wide.py").write_text(
        "def wide(completions, **columns):\n    return [float(len(set(text))) for text in completions]\n"
    )
    assert cli("train", sft(folder, training={"steps": 1})).code == 0
    return folder


@contextmanager
def _asked_to_stop(after: int) -> Iterator[None]:
    real = Keeper.__call__

    def told(self: Keeper, step: int, state: State) -> None:
        if step == after:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, step, state)

    with mock.patch.object(Keeper, "__call__", told):
        yield


def _interrupted(folder: Path, name: str, after: int = 1, **keys: Any) -> Path:
    """The recipe of a run of two steps that was stopped after the first."""
    held_out = {"data": {"path": str(folder / "sums.jsonl"), "start": 80}, "limit": 4}
    more = {"eval": held_out, "rewards": [f"{folder / 'wide.py'}:wide"], "training": {"steps": 2}, "group_size": 2}
    path = online(folder, name, **(more | keys))
    with _asked_to_stop(after):
        assert cli("train", path).code == 75
    return path


def _refused(done: Done, *words: str) -> None:
    assert done.code == 2, done.out
    for word in words:
        assert word in done.err


@pytest.mark.fault("C4")
def test_the_kl_to_the_start_is_measured_from_now_on(folder: Path) -> None:
    """Of the start nothing is remembered in the state, as the first attempt had no use for it."""
    path = _interrupted(folder, "kl", algorithm="reinforce", training={"steps": 2, "kl_every": 0})
    done = cli("train", path, "training.kl_every=1")
    assert done.code == 0, done.err
    steps, kl = RunReader(folder / "kl").metrics()["kl"]
    assert steps.tolist() == [2]
    assert kl[0] > 0


EVAL: dict[str, tuple[list[str], int]] = {
    "fewer": (["eval.limit=2"], 2),
    "other rows": (["eval.data.start=81"], 0),
    "another file": (["eval.data.path=FOLDER/more.jsonl", "eval.data.start=0"], 0),
    "none": (["eval=null"], 0),
}


@pytest.mark.fault("C4")
@pytest.mark.parametrize("how", EVAL)
def test_what_is_held_out_may_change(how: str, folder: Path) -> None:
    """The report's table has the prompts that were answered before and after, each beside itself."""
    (folder / "more.jsonl").write_text("".join(f'{{"prompt": "{i}-0=", "completion": "{i}"}}\n' for i in range(5)))
    changes, same = EVAL[how]
    run = folder / how.replace(" ", "-")
    path = _interrupted(folder, run.name)
    done = cli("train", path, *(change.replace("FOLDER", str(folder)) for change in changes))
    assert done.code == 0, done.err
    with RunReader(run) as reader:
        table = reader.summary["samples"]
        events = [event.message for event in reader.events() if event.level == "warning"]
    assert [row["prompt"] for row in table] == [f"8+{i}=" for i in range(same)]
    assert any("the eval section is another one than before" in message for message in events)


@pytest.mark.fault("D14")
def test_held_out_rows_may_not_change_under_their_name(folder: Path) -> None:
    held_out = folder / "held.jsonl"
    first, second = (f'{{"prompt": "1-0=", "completion": "{number}"}}\n' for number in (1, 2))
    held_out.write_text(first)
    path = _interrupted(folder, "held", eval={"data": {"path": str(held_out)}})
    held_out.write_text(second)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (first, second)]
    said = f"was begun with other content: eval.data: file 1 ({held_out}) had sha256 {digests[0]}, and now {digests[1]}"
    for command in ("check", "train"):
        _refused(cli(command, path), f"{said}. Restore it to continue")
    held_out.write_text(first)
    assert "other content" not in cli("check", path).out
    assert cli("train", path).code == 0
    held_out.write_text(second)
    checked = cli("check", path)  # it is finished, so that nothing is refused
    assert checked.code == 0
    assert f"note: {folder / 'held'} {said}\n" in checked.out


def _grow(weights: Path) -> None:
    """A published folder's manifest is not looked at: it stays as it was."""
    save_file({name: 2 * t for name, t in load_file(weights).items()}, weights, metadata={"format": "pt"})


@pytest.mark.fault("D14", "C4")
def test_models_that_give_rewards_and_values_may_not_change(folder: Path) -> None:
    judged = recipe(
        folder / "judge.yaml",
        model=MODEL,
        algorithm="bradley_terry",
        offline={"path": str(folder / "pairs.jsonl"), "stop": 80},
        training={"steps": 1},
    )
    assert cli("reward-model", judged, f"model={folder / 'sft'}").code == 0
    judge = folder / "judge"
    path = _interrupted(
        folder,
        "judged",
        algorithm="ppo",
        rewards=[{"reward": "reward_model", "path": str(judge)}],
        critic={"path": str(judge)},
    )
    weights = judge / "model" / "model.safetensors"
    shutil.copy(weights, kept := folder / "kept.safetensors")
    _grow(weights)
    said = "(" + str(weights) + ") had sha256"
    for command in ("check", "train"):
        _refused(cli(command, path), f"rewards.0: model.safetensors {said}", f"critic.path: model.safetensors {said}")
    shutil.copy(kept, weights)
    done = cli("train", path)
    assert done.code == 0, done.err


@pytest.mark.fault("D14", "C4")
def test_weights_of_the_start_may_not_change_beside_their_manifest(folder: Path) -> None:
    start = folder / "start"
    shutil.copytree(folder / "sft" / "model", start)
    assert (start / "manifest.json").is_file()
    path = _interrupted(folder, "grown", model=str(start))
    _grow(start / "model.safetensors")
    for command in ("check", "train"):
        _refused(cli(command, path), "model: model.safetensors", "was begun with other content")


@pytest.mark.fault("C4")
def test_check_says_what_train_will_do(folder: Path) -> None:
    path = _interrupted(folder, "checked")
    for command in ("check", "train"):
        _refused(cli(command, path, "training.seed=3"), "holds another run: training.seed: 0 → 3. Use the same")
    fine = ("training.save_every=1", "eval.limit=3")
    assert "the same command continues it" in cli("check", path, *fine).out
    assert cli("train", path, *fine).code == 0
    for command in ("check", "train"):
        assert "nothing is left to do" in cli(command, path).out
        _refused(cli(command, path, "training.steps=8"), "holds a finished run", "training.steps: 2 → 8")


_STOPPED = "stopped at step 2, the second such step in a row: flat_groups"
_ALARMED = {"steps": 4, "eval_every": 1, "flat_steps": 2, "alarms": {"flat_groups": 0}}
"""Any share of groups is an alarm, also that of none."""


def _online(folder: Path, name: str, training: dict[str, Any]) -> Path:
    held_out = {"data": {"path": str(folder / "sums.jsonl"), "start": 80}, "limit": 4}
    optimizer = {"learning_rate": 1e-2}
    rewards = [f"{folder / 'wide.py'}:wide"]
    return online(
        folder, name, eval=held_out, rewards=rewards, training=training, optimizer=optimizer, replay={"capacity": 20}
    )


def _recorded(run: Path) -> dict[str, Any]:
    with RunReader(run) as reader:
        return {
            name: [*zip(steps.tolist(), values.tolist(), strict=True)]
            for name, (steps, values) in reader.metrics().items()
            if name not in TIMES
        }


@pytest.mark.fault("C3", "P1")
@pytest.mark.parametrize("other", ["training.alarms.flat_groups=off", "training.flat_steps=5"])
def test_a_run_that_an_alarm_ended_goes_on_from_there_with_another_limit(folder: Path, other: str) -> None:
    """What it comes to is, to the bit, what it would have been with that limit."""
    name = f"alarmed-{len(other)}"
    path = _online(folder, name, _ALARMED)
    for again in (False, True):  # which says why without doing any step
        done = cli("train", path)
        assert (done.steps == []) == again
        _refused(done, _STOPPED, "With another limit (training.flat_steps) the same command goes on")
        assert [p.name for p in (folder / name / "state").iterdir()] == ["step-2"]
        with RunReader(folder / name) as reader:
            assert reader.last_step == 2
            assert reader.status == "interrupted"
    checked = cli("check", path)
    assert checked.code == 0, checked.err
    assert f"note: {folder / name} holds a run that an alarm has ended: {_STOPPED}" in checked.out
    done = cli("train", path, other)
    assert done.code == 0, done.err
    assert "continues after step 2" in done.out
    assert len(done.steps) == 2
    whole = _online(folder, f"{name}-whole", _ALARMED)
    assert cli("train", whole, other).code == 0
    one, two = (folder / name, folder / f"{name}-whole")
    assert (one / "model" / "model.safetensors").read_bytes() == (two / "model" / "model.safetensors").read_bytes()
    assert _recorded(one) == _recorded(two)


@pytest.mark.fault("N1")
def test_weights_that_are_not_finite_are_not_saved_by_an_alarm_either(folder: Path) -> None:
    path = _online(folder, "spoilt", _ALARMED | {"resume_every": 1})
    real = Recorder.step

    def spoils(self: Recorder, step: int, result: Any) -> None:
        real(self, step, result)
        if step == 2:
            next(iter(self.policy.trained().values())).data.fill_(float("nan"))

    with mock.patch.object(Recorder, "step", spoils):
        done = cli("train", path, "training.eval_every=0", "eval=null")
    _refused(done, _STOPPED, "after step 2: the weight", "is not finite; nothing was saved")
    assert [p.name for p in (folder / "spoilt" / "state").iterdir()] == ["step-1"]


@pytest.mark.fault("P1")
def test_a_replay_buffer_of_rows_that_json_does_not_have(folder: Path) -> None:
    """Times, bytes: columns of the data, which rewards see, and the state does not need."""
    when = datetime.datetime(2020, 1, 1)
    rows = [{"prompt": f"{a}+{b}=", "when": when, "raw": b"\xff"} for a, b in SUMS[:20]]
    pq.write_table(pa.Table.from_pylist(rows), folder / "sums.parquet")
    keys = {
        "algorithm": "awr",
        "online": {"path": str(folder / "sums.parquet")},
        "replay": {"capacity": 8, "per_step": 4},
    }
    training = {"steps": 3, "kl_every": 0}
    _interrupted(folder, "replayed", 2, training=training, **keys)
    assert cli("train", folder / "replayed.yaml").code == 0
    whole = online(
        folder, "replayed-whole", training=training, rewards=[f"{folder / 'wide.py'}:wide"], group_size=2, **keys
    )
    assert cli("train", whole).code == 0
    one, two = ((folder / name / "model" / "model.safetensors").read_bytes() for name in ("replayed", "replayed-whole"))
    assert one == two


@pytest.mark.fault("D3")
def test_rows_that_are_left_out_are_listed_with_what_json_does_not_have(folder: Path) -> None:
    when = datetime.datetime(2020, 1, 2, 3, 4)
    rows = [{"prompt": f"{i}+0=" if i else None, "completion": str(i), "when": when, "raw": b"\xff"} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "bad.parquet")
    data = {"path": str(folder / "bad.parquet"), "on_bad": "skip"}
    path = recipe(folder / "left.yaml", model=str(folder / "sft"), algorithm="sft", offline=data, training={"steps": 1})
    done = cli("train", path)
    assert done.code == 0, done.err
    (line,) = (folder / "left" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == {"prompt": None, "completion": "0", "when": str(when), "raw": "b'\\xff'"}


@pytest.mark.fault("P1")
def test_a_finished_run_keeps_no_state_unless_it_is_asked_to(folder: Path) -> None:
    """Also where it was killed between its end and the removal: the same command does it."""
    keys = {"training": {"steps": 3, "resume_every": 1}}
    path, state = sft(folder, "tidy", **keys), folder / "tidy" / "state"
    with mock.patch("gro.jobs.work.forget_state", side_effect=SystemError("pulled the plug")), suppress(SystemError):
        cli("train", path)
    assert {p.name for p in state.iterdir()} == {"step-1", "step-2"}
    done = cli("train", path, "training.keep_state=true")
    assert "nothing is left to do" in done.out
    assert state.is_dir()
    assert "nothing is left to do" in cli("train", path).out
    assert not state.exists()
    assert cli("train", sft(folder, "bare", **keys)).code == 0
    assert not (folder / "bare" / "state").exists()


@pytest.mark.fault("P1")
def test_a_finished_run_leaves_the_runs_of_others_inside_it_alone(folder: Path) -> None:
    keys = {"training": {"steps": 2, "resume_every": 1}}
    outer, inner = sft(folder, "outer", **keys), sft(folder, "inner", **keys)
    assert cli("train", outer).code == 0
    for keep in ("true", "false"):
        assert cli("train", inner, f"run={folder / 'outer' / 'inner'}", f"training.keep_state={keep}").code == 0
        assert "nothing is left to do" in cli("train", outer).out
        assert (folder / "outer" / "inner" / "state").exists() == (keep == "true")
