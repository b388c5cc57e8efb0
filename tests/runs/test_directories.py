"""Numbered directories: the newest sound one is found whatever happened to the others, and rotation loses nothing."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gro.runs import directories, files
from gro.runs.operations import refusal
from runs.faults import fail_at, killed_at, operations_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a kill nor a refusal notices whether data reached the disk; test_power_loss.py is about that."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


REFUSALS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG]


def save(parent: Path, step: int, content: str = "") -> None:
    """As a checkpoint is saved: written, published, rotated."""
    with files.new_directory(parent / f"step-{step}", needed=5000) as folder:
        files.write_text(folder / "weights", f"weights of {step}{content}")
        files.write_json(folder / "state.json", {"step": step})
    files.rotate(parent, "step-", keep=2)


def three(parent: Path) -> None:
    for step in (8, 9, 10):
        save(parent, step)


def found(parent: Path) -> tuple[str | None, list[str]]:
    path, refused = files.newest_complete(parent, "step-")
    if path is None:
        return None, refused
    assert (path / "weights").read_text().startswith(f"weights of {path.name[5:]}")
    assert files.read_json(path / "state.json") == {"step": int(path.name[5:])}
    return path.name, refused


def names(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir())


def test_newest_first_by_number_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        with files.new_directory(tmp_path / f"step-{step}") as folder:
            files.write_text(folder / "weights", "w")
    for name in ("step-", "step-x", "step-300.old", "astep-400", ".step-500.tmp-1-1"):
        shutil.copytree(tmp_path / "step-9", tmp_path / name)
    (tmp_path / "step-600").write_text("a file")
    (tmp_path / "step-700").mkdir()
    assert [p.name for p in files.complete_directories(tmp_path, "step-")] == ["step-100", "step-20", "step-9"]
    path, refused = files.newest_complete(tmp_path, "step-")
    assert path == tmp_path / "step-100"
    assert refused == [f"{tmp_path / 'step-700'} was never completed: it has no manifest.json"]
    assert files.newest_complete(tmp_path / "absent", "step-") == (None, [])
    assert files.complete_directories(tmp_path / "absent", "step-") == []


def test_rotation_keeps_the_newest_whole_ones(tmp_path: Path) -> None:
    three(tmp_path)
    assert names(tmp_path) == ["step-10", "step-9"]
    (tmp_path / "step-10" / "weights").write_text("short")  # does not count: what is sound must not go for it
    assert files.rotate(tmp_path, "step-", keep=2) == []
    assert files.rotate(tmp_path, "step-", keep=1) == []
    save(tmp_path, 11)
    assert names(tmp_path) == ["step-10", "step-11", "step-9"]
    save(tmp_path, 12)
    assert names(tmp_path) == ["step-11", "step-12"]
    with pytest.raises(ValueError, match="keep is 0: the newest must stay"):
        files.rotate(tmp_path, "step-", keep=0)


@pytest.mark.fault("P2")
def test_killed_at_every_operation_of_save_and_rotation(tmp_path: Path) -> None:
    """Whoever comes next finds the newest that was published, and removes the rest."""
    n, seen = 0, set()
    while True:
        parent = tmp_path / str(n)
        three(parent)
        killed = killed_at(n, lambda parent=parent: save(parent, 11))
        left = files.sweep(parent)
        newest, refused = found(parent)
        assert refused == []
        assert newest in ("step-10", "step-11")
        kept = names(parent)
        assert set(kept) in ({"step-9", "step-10"}, {"step-9", "step-10", "step-11"}, {"step-10", "step-11"})
        seen.add((newest, len(kept), bool(left)))
        if not killed:
            break
        save(parent, 12)  # and goes on
        assert found(parent)[0] == "step-12"
        assert len(names(parent)) == 2
        n += 1
    # Kills before the publication, between it and the rotation, within the removal, and none.
    assert {("step-10", 2, True), ("step-11", 3, False), ("step-11", 2, True), ("step-11", 2, False)} <= seen
    # create; two files of five; fsync of both; the manifest; rename; fsync; the rotation's rename, fsync, remove
    assert n == 1 + 2 * 5 + 2 + 5 + 2 + 3


@pytest.mark.fault("P4")
@pytest.mark.parametrize("number", REFUSALS)
def test_the_disk_refuses_at_every_operation_of_save_and_rotation(tmp_path: Path, number: int) -> None:
    """What was there stays whole, nothing is left over, and the same save goes through once there is room."""
    three(tmp_path / "count")
    count = len(operations_of(lambda: save(tmp_path / "count", 11)))
    for n in range(count):
        parent = tmp_path / str(n)
        three(parent)
        before = names(parent)
        with files.observed(fail_at(n, number)), pytest.raises(files.DiskError, match=os.strerror(number)) as caught:
            save(parent, 11)
        assert caught.value.errno == number
        published = (parent / "step-11").exists()
        if not published:
            assert names(parent) == before
            if n and number != errno.EIO:
                assert f"cannot write {parent / 'step-11'}: " in str(caught.value)
                assert "(4.9 KiB needed, " in str(caught.value)
        else:
            assert n >= count - 3  # the rotation
        assert found(parent) == ("step-11" if published else "step-10", [])
        save(parent, 12 if published else 11)
        files.sweep(parent)
        assert len(names(parent)) == 2


@pytest.mark.fault("P4")
def test_refusals_in_the_words_of_other_libraries(tmp_path: Path) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tensors = {"w": torch.zeros(5000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        for write in (
            lambda folder: save_file(tensors, folder / "w.safetensors"),
            lambda folder: torch.save(tensors, folder / "w.pt"),
            lambda folder: files.write_atomically(folder / "w.pt", lambda file: torch.save(tensors, file)),
            lambda folder: (folder / "w").write_bytes(bytes(20_000)),
        ):
            with pytest.raises(files.DiskError, match=r"cannot write .*step-1: "):  # noqa: SIM117
                with files.new_directory(tmp_path / "step-1", needed=20_000) as folder:
                    write(folder)
            assert names(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert refusal(ValueError("no space")) is None
    assert refusal(FileNotFoundError(errno.ENOENT, "")) is None  # a mistake, not the disk


@pytest.mark.fault("P4")
def test_a_publication_that_is_not_durable_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = directories.sync_directory, []

    def once(path: Path) -> None:
        if path == tmp_path and (tmp_path / "step-1").exists() and not calls:
            calls.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    monkeypatch.setattr(directories, "sync_directory", once)
    with pytest.raises(files.DiskError, match="Input/output error"):
        save(tmp_path, 1)
    assert names(tmp_path) == []
    save(tmp_path, 1)
    assert found(tmp_path) == ("step-1", [])


# Damage


def damages(size: int, rng: random.Random) -> list[tuple[str, int]]:
    """Truncations to every eighth of the file, and flips of bits all over it."""
    return [("cut", n * size // 8) for n in range(8)] + [("flip", rng.randrange(8 * size)) for _ in range(20)]


@pytest.mark.fault("P6")
@pytest.mark.parametrize("name", ["weights", "state.json", "manifest.json"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    three(tmp_path)
    file = tmp_path / "step-10" / name
    good = file.read_bytes()
    for kind, at in damages(len(good), random.Random(name)):
        bad = bytearray(good[:at] if kind == "cut" else good)
        if kind == "flip":
            bad[at // 8] ^= 1 << at % 8
        file.write_bytes(bytes(bad))
        newest, (refused,) = found(tmp_path)
        assert newest == "step-9"
        assert str(file) in refused
    file.write_bytes(good)
    assert found(tmp_path) == ("step-10", [])
    file.unlink()
    newest, (refused,) = found(tmp_path)
    assert newest == "step-9"
    assert name in refused


@pytest.mark.fault("P6")
def test_no_bit_of_a_manifest_can_change_what_it_says(tmp_path: Path) -> None:
    with files.new_directory(tmp_path / "c") as folder:
        for name in ("a", "b"):  # one bit apart from each other and from c: a flip can make one name another
            files.write_text(folder / name, name)
    manifest = tmp_path / "c" / files.MANIFEST
    good = manifest.read_bytes()
    accepted = []
    for bit in range(0, len(good) * 8, 7):  # all eight bits, byte by byte in turn
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(bytes(bad))
        try:
            files.verify_directory(tmp_path / "c")
            accepted.append((good[bit // 8], bad[bit // 8]))
        except files.DamagedError:
            pass
    assert {before for before, _ in accepted} <= set(b" \n")  # only space between values, and only for other space
    assert {after for _, after in accepted} <= set(b" \n\t\r")


@pytest.mark.fault("P6")
def test_all_damaged_is_said_of_each(tmp_path: Path) -> None:
    three(tmp_path)
    for step in (9, 10):
        (tmp_path / f"step-{step}" / "weights").unlink()
    newest, refused = found(tmp_path)
    assert newest is None
    assert refused == [f"{tmp_path / f'step-{step}' / 'weights'} is missing" for step in (10, 9)]


@pytest.mark.fault("P4", "P6")
def test_a_bad_sector_is_damage_and_a_lack_of_descriptors_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(tmp_path)
    real = Path.open

    def opens(self: Path, *arguments: object, **more: object) -> object:
        if self.name == "weights" and self.parent.name == "step-10":
            raise OSError(number, os.strerror(number))
        return real(self, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", opens)
    number = errno.EIO
    assert found(tmp_path) == ("step-9", [f"{tmp_path / 'step-10' / 'weights'} is damaged: Input/output error"])
    number = errno.EMFILE
    with pytest.raises(files.DiskError, match=r"cannot read .*weights: Too many open files"):
        found(tmp_path)
