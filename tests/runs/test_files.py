from __future__ import annotations

import errno
import json
import math
import os
import resource
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.errors import GroError
from gro.runs import files
from gro.runs.plain import load_yaml, plain
from runs.faults import fail_at, killed_at, operations_of


def names(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


@pytest.mark.fault("P5")
def test_a_write_is_synced_before_and_after_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (seen.append(f"os.{name}"), real(*a))[1])
    with files.observed(lambda operation, path: seen.append(operation)):
        files.write_text(tmp_path / "a", "x")
    steps = ["create", "write", "fsync", "os.fsync", "rename", "os.replace", "fsync", "os.fsync"]
    assert seen == steps
    seen.clear()
    with files.observed(lambda operation, path: seen.append(operation)):
        files.append_json_line(tmp_path / "l", {})
    assert seen == ["write", "fsync", "os.fsync", "fsync", "os.fsync"]  # the new name in its directory, too
    seen.clear()
    with files.observed(lambda operation, path: seen.append(operation)):
        files.append_json_line(tmp_path / "l", {})
    assert seen == ["write", "fsync", "os.fsync"]


def test_large_writes_are_announced_in_pieces(tmp_path: Path) -> None:
    size = 3 * (1 << 20) + 5
    seen = operations_of(lambda: files.write_atomically(tmp_path / "a", lambda f: f.write(b"z" * size)))
    assert seen.count("write") == 4
    assert (tmp_path / "a").read_bytes() == b"z" * size


@pytest.mark.fault("P4")
def test_failing_at_any_operation_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a"
    count = len(operations_of(lambda: files.write_text(path, "old")))
    for n in range(count):
        files.write_text(path, "old")
        with files.observed(fail_at(n)), pytest.raises(files.DiskError, match="No space left") as caught:
            files.write_text(path, "new")
        assert caught.value.errno == errno.ENOSPC
        assert path.read_text() == ("new" if n == count - 1 else "old")  # the last: only the directory's fsync
        assert names(tmp_path) == {"a"}


@pytest.mark.fault("P4")
def test_a_full_disk_is_told_with_bytes_needed_and_free(tmp_path: Path) -> None:
    with files.observed(fail_at(1)), pytest.raises(files.DiskError, match=r"2\.0 KiB needed, .* free"):
        files.write_text(tmp_path / "a", "x" * 2048)


@pytest.mark.fault("P4")
def test_a_real_file_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(files.DiskError, match="File too large"):
            files.write_text(path, "x" * 10_000)
        line = {"x": "y" * 3000}
        files.append_json_line(tmp_path / "l", line)
        with pytest.raises(files.DiskError):
            files.append_json_line(tmp_path / "l", line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert [json.loads(x) for x in (tmp_path / "l").read_text().splitlines()] == [line]  # the torn half is gone
    assert names(tmp_path) == {"a", "l"}


def save(final: Path) -> None:
    """A directory as a checkpoint is: two files, one of them in a directory of its own."""
    with files.new_directory(final) as d:
        (d / "sub").mkdir()
        files.write_text(d / "sub" / "b", "B" * 1000)
        files.write_text(d / "a", "A")


@pytest.mark.fault("P2")
def test_killed_at_every_operation_of_publishing_a_directory(tmp_path: Path) -> None:
    n = 0
    while True:
        directory = tmp_path / str(n)
        directory.mkdir()
        final = directory / "step-1"
        killed = killed_at(n, lambda final=final: save(final))
        if final.exists():  # under its final name it is complete, whatever follows
            assert [f.name for f in files.verify_directory(final)] == ["a", "b"]
        left = files.sweep(directory)
        assert names(directory) == ({"step-1"} if not left and n > 0 else set())
        if not killed:
            break
        n += 1
    # create; two files of five operations; fsync of both and of sub; the manifest, of five; rename; fsync
    assert n == 1 + 2 * 5 + 3 + 5 + 2


@pytest.mark.fault("P5")
def test_the_manifest_is_the_last_file(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    with files.observed(lambda operation, path: seen.append((operation, path.name))):
        save(tmp_path / "step-1")
    manifest = seen.index(("rename", files.MANIFEST))
    assert seen[manifest + 2 :] == [("rename", "step-1"), ("fsync", tmp_path.name)]
    assert {("fsync", "a"), ("fsync", "b"), ("fsync", "sub")} <= set(seen[:manifest])


def test_publishing_never_overwrites(tmp_path: Path) -> None:
    for content in ("one", "two"):
        refused = pytest.raises(GroError, match="exists already") if content == "two" else nullcontext()
        with refused, files.new_directory(tmp_path / "c") as d:
            files.write_text(d / "x", content)
    assert (tmp_path / "c" / "x").read_text() == "one"
    assert names(tmp_path) == {"c"}


@pytest.mark.fault("P6")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "x").write_bytes(b"hellp"), r"x is damaged"),
        (lambda d: (d / "x").write_bytes(b"hell"), r"x has 4 bytes where 5 were written"),
        (lambda d: (d / "x").unlink(), r"x is missing"),
        (lambda d: (d / files.MANIFEST).unlink(), r"never completed"),
        (lambda d: (d / files.MANIFEST).write_text('{"files": 3}'), r"manifest.json is damaged"),
        (lambda d: (d / files.MANIFEST).write_text('{"files": {"x'), r"manifest.json is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    with files.new_directory(tmp_path / "c") as d:
        files.write_text(d / "x", "hello")
    assert files.verify_directory(tmp_path / "c") == [tmp_path / "c" / "x"]
    damage(tmp_path / "c")
    with pytest.raises(files.DamagedError, match=message):
        files.verify_directory(tmp_path / "c")


@pytest.mark.fault("P6")
def test_every_single_bit_counts(tmp_path: Path) -> None:
    with files.new_directory(tmp_path / "c") as d:
        files.write_text(d / "x", "hello")
    good = (tmp_path / "c" / "x").read_bytes()
    for bit in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "c" / "x").write_bytes(bytes(flipped))
        with pytest.raises(files.DamagedError):
            files.verify_directory(tmp_path / "c")


@pytest.mark.fault("P2", "P4")
def test_a_directory_is_removed_by_renaming_first(tmp_path: Path) -> None:
    for n, gone in ((0, False), (1, True), (2, True), (3, True)):
        final = tmp_path / f"c{n}"
        with files.new_directory(final) as d:
            files.write_text(d / "x", "hello")
        with files.observed(fail_at(n, errno.EIO)):
            if n < 3:
                with pytest.raises(files.DiskError, match="Input/output error"):
                    files.remove_directory(final)
            else:
                files.remove_directory(final)
        assert final.exists() is not gone
        if not gone:
            files.verify_directory(final)
    files.sweep(tmp_path)
    assert names(tmp_path) == {"c0"}


def test_sweep_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    for name in (".hidden", "a.tmp-1-2", ".x.tmp", ".report.html.tmp-12-0"):
        (tmp_path / name).write_text("")
    assert [p.name for p in files.sweep(tmp_path)] == [".report.html.tmp-12-0"]
    assert names(tmp_path) == {".hidden", "a.tmp-1-2", ".x.tmp"}
    assert files.sweep(tmp_path / "absent") == []


def test_an_unfinished_line_is_closed_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    files.append_json_line(path, {"a": math.nan, "b": "\ud800"})
    with path.open("a") as file:
        file.write('{"torn": ')
    files.append_json_line(path, {"c": 3})
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"a": None, "b": "\\ud800"}
    assert lines[1] == '{"torn": '
    assert json.loads(lines[2]) == {"c": 3}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_yaml_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    files.write_yaml(path, value)
    assert files.read_yaml(path) == plain(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e5", 1e5), ("-2E+3", -2e3), (".5e1", 5.0), ("1.5", 1.5), ("7", 7), ("e5", "e5"), ("1e", "1e")],
)
def test_numbers_with_exponents_are_numbers(text: str, value: object) -> None:
    found = load_yaml(f"x: {text}")["x"]
    assert found == value
    assert type(found) is type(value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "c.json").write_text("{")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(GroError, match=f"{name} is not valid YAML"):
            files.read_yaml(tmp_path / name)
    with pytest.raises(GroError, match=r"c\.json is not valid JSON"):
        files.read_json(tmp_path / "c.json")
    with pytest.raises(files.DiskError, match="No such file"):
        files.read_json(tmp_path / "d.json")


def test_what_has_no_plain_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no plain form"):
        plain({"a": object()})
    assert plain({"p": Path("a/b"), "t": (1, 2), "s": {2, 1}}) == {"p": "a/b", "t": [1, 2], "s": [1, 2]}
