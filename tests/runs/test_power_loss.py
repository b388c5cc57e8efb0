"""Whenever the power fails, a complete checkpoint is found, and nothing damaged is taken for one."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from gro.runs import Run, atomic, directories, files
from gro.training.checkpoint import Keeper
from jobs_on_sums import cli, sft, write_data
from runs.faults import killed_at, operations_of
from runs.power_loss import Record, lay_out, recorded, states

STEPS = 3  # with two kept, the last of them rotates


@pytest.fixture
def room() -> Iterator[Path]:
    """A place for thousands of small directories, in memory where the system has one."""
    memory = Path("/dev/shm")
    base = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(base) / "room"
    shutil.rmtree(base)


def save(parent: Path, step: int, shards: int = 1) -> None:
    """A checkpoint: files that a library writes by itself, in a directory, and one of ours; then the rotation."""
    with files.new_directory(parent / f"step-{step}") as folder:
        (folder / "model").mkdir()
        for shard in range(shards):
            save_file({"w": torch.full((3,), step + shard / 8)}, folder / "model" / f"{shard}.safetensors")
        files.write_json(folder / "state.json", {"step": step})
    files.rotate(parent, "step-", keep=2)


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def whole(path: Path, shards: int = 1) -> dict[str, dict[str, bytes]]:
    """What each checkpoint must hold."""
    expected = {}
    for step in range(1, STEPS + 1):
        save(path, step, shards)
        expected[f"step-{step}"] = content_of(path / f"step-{step}")
    return expected


def faults_of(
    record: Record,
    expected: dict[str, dict[str, bytes]],
    room: Path,
    limit: int = 60,
    inside: str = "checkpoints",
) -> tuple[int, list]:
    """How many states were tried, and the first from which what was promised, or something newer, is not found."""
    chance = random.Random(0)
    tried, faults = 0, []
    known: dict[frozenset, str | None] = {}
    for number, (disk, promised) in enumerate(record.moments):
        for state in states(disk, limit, chance):
            tried += 1
            key = frozenset(state.items())
            if key not in known:
                lay_out(state, room)
                with mock.patch("os.fsync"):
                    files.sweep(room / inside)
                found, _ = files.newest_complete(room / inside, "step-")
                known[key] = None if found is None else found.name
                if found is not None and content_of(found) != expected[found.name]:
                    faults.append((number, "damaged and taken for good", found.name))
                shutil.rmtree(room)
            step = int((known[key] or "step-0").removeprefix("step-"))
            if step < int(str(promised or 0)):
                faults.append((number, f"{promised} was promised, {known[key]} is found", sorted(state)))
            if faults:
                return tried, faults
    return tried, faults


def record_saves(path: Path, shards: int = 1) -> Record:
    path.mkdir()
    with recorded(path) as record:
        for step in range(1, STEPS + 1):
            save(path / "checkpoints", step, shards)
            record.mark(step)
    return record


@pytest.mark.fault("P5", "P2")
def test_from_every_state_a_power_cut_leaves_a_complete_checkpoint_is_found(tmp_path: Path, room: Path) -> None:
    expected = whole(tmp_path / "expected")
    record = record_saves(tmp_path / "run")
    assert len(record.moments) > 15 * STEPS  # each save: three files, two of them of ours, four directories, names
    tried, faults = faults_of(record, expected, room, limit=50_000)  # all there are
    assert faults == []
    assert tried > 500


@pytest.mark.slow
@pytest.mark.fault("P5", "P2")
def test_from_many_states_of_a_larger_checkpoint(tmp_path: Path, room: Path) -> None:
    expected = whole(tmp_path / "expected", shards=4)
    record = record_saves(tmp_path / "run", shards=4)
    tried, faults = faults_of(record, expected, room, limit=8000)
    print(f"{len(record.moments)} prefixes, {tried} states")
    assert faults == []
    assert tried > 20_000


def nothing(*_: object) -> None: ...


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "files are not synced": lambda patch: patch.setattr(directories, "sync_file", nothing),
    "directories are not synced": lambda patch: patch.setattr(directories, "sync_directory", nothing),
    "the manifest's directory is not synced": lambda patch: patch.setattr(atomic, "sync_directory", nothing),
    "nothing is checked": lambda patch: patch.setattr(directories, "_sha256", lambda path: ""),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_an_fsync_that_is_missing_is_found(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """So the tests above can fail."""
    with monkeypatch.context() as patch:
        BREAKS[broken](patch)
        if broken == "nothing is checked":  # then the order alone protects, unless that is wrong as well
            patch.setattr(directories, "sync_file", nothing)
        expected = whole(tmp_path / "expected")
        record = record_saves(tmp_path / "run")
        _, faults = faults_of(record, expected, room, limit=20)
    assert faults != []


@pytest.mark.slow
@pytest.mark.fault("P5", "P2")
def test_killed_continued_and_then_the_power_fails(tmp_path: Path, room: Path) -> None:
    """Nothing that the killed process wrote counts as synced, which is worse than what can happen."""
    expected = whole(tmp_path / "expected")
    first = tmp_path / "first"
    save(first, 1)
    count = len(operations_of(lambda: save(first, 2)))
    for n in range(0, count, 2):
        path = tmp_path / str(n)
        path.mkdir()
        save(path / "checkpoints", 1)
        with recorded(path) as record:
            record.mark(1)
            assert killed_at(n, lambda path=path: save(path / "checkpoints", 2))
            files.sweep(path / "checkpoints")
            found, _ = files.newest_complete(path / "checkpoints", "step-")
            assert found is not None
            for step in range(int(found.name[5:]) + 1, STEPS + 1):
                save(path / "checkpoints", step)
                record.mark(step)
        _, faults = faults_of(record, expected, room, limit=20)
        assert faults == []


@pytest.mark.fault("P5")
def test_a_file_that_is_replaced_is_the_old_one_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    files.write_json(path / "a.json", 0)
    with recorded(path) as record:
        record.mark(0)
        for value in (1, 2):
            files.write_json(path / "a.json", value)
            record.mark(value)
    chance = random.Random(0)
    for disk, promised in record.moments:
        found = {state["a.json"] for state in states(disk, 10**6, chance)}
        assert found <= {b"0\n", b"1\n", b"2\n"}
        assert min(int(text or b"") for text in found) >= int(str(promised or 0))


@pytest.mark.fault("P5")
def test_a_line_that_was_appended_stays(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with recorded(path) as record:
        for value in range(3):
            files.append_json_line(path / "a.jsonl", {"row": value})
            record.mark(value + 1)
    chance = random.Random(0)
    for disk, promised in record.moments:
        for state in states(disk, 10**6, chance):
            lines = (state.get("a.jsonl") or b"").split(b"\n")
            rows = [json.loads(line)["row"] for line in lines[: int(str(promised or 0))]]
            assert rows == list(range(int(str(promised or 0))))


@pytest.mark.fault("P5")
def test_a_new_run_is_on_the_disk_with_its_settings_and_failures(tmp_path: Path) -> None:
    """The database's own files are SQLite's to keep (WAL, synchronous = FULL)."""
    with recorded(tmp_path) as record, Run.open(tmp_path / "runs" / "a", {"lr": 1}) as run:
        record.mark("open")
        run.failure("reward", "boom")
        record.mark("failure")
    promised = {"open": ["runs/a/config.yaml"], "failure": ["runs/a/config.yaml", "runs/a/failures/reward-001.txt"]}
    chance = random.Random(0)
    for disk, mark in record.moments:
        for state in states(disk, 200, chance):
            for name in promised.get(str(mark), []):
                assert state[name] in (b"lr: 1\n", b"boom")


@pytest.mark.slow
@pytest.mark.fault("P5", "P2")
def test_the_states_of_a_whole_job(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training itself saves and removes: weights, optimizer, plain numbers, of each step."""
    write_data(tmp_path)
    recipe = sft(tmp_path, training__steps=5, training__resume_every=1, training__keep_state=True)
    folder = tmp_path / "sft" / "state"
    folder.mkdir(parents=True)
    expected, real = {}, Keeper.save

    def save(self: Keeper, step: int, state: dict[str, float]) -> None:
        real(self, step, state)
        expected[f"step-{step}"] = content_of(folder / f"step-{step}")
        record.mark(step)

    monkeypatch.setattr(Keeper, "save", save)
    with recorded(folder) as record:
        assert cli("train", recipe).code == 0
    assert sorted(expected) == ["step-1", "step-2", "step-3", "step-4"]
    assert {"state.json", "weights.safetensors", "optimizer.safetensors"} < set(expected["step-4"])
    tried, faults = faults_of(record, expected, room, limit=40, inside="")
    assert faults == []
    assert tried > 500
