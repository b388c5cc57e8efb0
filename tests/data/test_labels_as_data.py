"""Files of labels are data."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from gro.data.files import content_sha256, read_rows
from gro.errors import DataError
from gro.labels.export import export
from gro.labels.items import Item
from gro.labels.store import Sent, Store


def labelled(path: Path, answers: dict[str, int | str | None], annotator: str = "anna") -> None:
    """Labels of pairs; which of the two texts in alphabetic order is chosen, or "tie", or None for a skip."""
    store = Store(path, per_item=2)
    store.add(Item(f"{prompt}?", [f"{prompt} a\u2028", f"{prompt} b"]) for prompt in answers)
    while (offered := store.offer(annotator)) is not None:
        said = answers.get(offered.prompt[:-1])
        choice = offered.completions.index(sorted(offered.completions)[said]) if isinstance(said, int) else said
        answer = {"skip": True} if said is None else {"choice": choice}
        store.label(Sent(annotator, offered.item, offered.lease, f"{annotator}-{offered.item}", answer))
    store.close()


def test_the_rows_are_what_an_export_has(tmp_path):
    labelled(tmp_path / "labels.db", {"x": 0, "y": 1, "z": "tie", "s": None})
    found = list(read_rows(tmp_path / "labels.db"))
    assert [(row.number, row.counts) for row in found] == [(1, "row"), (2, "row")]
    assert [(r.fields["prompt"], r.fields["chosen"], r.fields["rejected"]) for r in found] == [
        ("x?", "x a\u2028", "x b"),
        ("y?", "y b", "y a\u2028"),
    ]
    store = Store(tmp_path / "labels.db", per_item=2)
    written = export(store, "preference")
    store.close()
    assert [dict(row.fields) for row in found] == [json.loads(line) for line in written.split("\n") if line]


def test_what_was_learnt_from_is_known_by_the_rows(tmp_path):
    path = tmp_path / "labels.db"
    labelled(path, {"x": 0, "y": 1})
    before = content_sha256(path)
    store = Store(path, per_item=2)
    store.add([Item("nobody has seen it", ["a", "b"])])
    store.close()
    assert content_sha256(path) == before
    labelled(path, {"x": 0, "y": 0}, annotator="bert")  # who now disagrees about y
    assert content_sha256(path) != before
    assert [row.fields["prompt"] for row in read_rows(path)] == ["x?"]


def test_what_is_no_file_of_labels_is_named(tmp_path):
    (tmp_path / "other.db").write_bytes(b"SQLite format 3")
    with pytest.raises(DataError, match=r"other.db.*is not a file of labels"):
        list(read_rows(tmp_path / "other.db"))
    labelled(tmp_path / "empty.db", {"x": "tie"})
    with pytest.raises(DataError, match=r"empty.db.*no label that prefers"):
        list(read_rows(tmp_path / "empty.db"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody who may not write")
def test_labels_are_read_where_nothing_may_be_written():
    folder = Path("/tmp") / f"gro-labels-{os.getpid()}"
    folder.mkdir()
    try:
        labelled(folder / "labels.db", {"x": 0, "y": 1})
        assert [path.name for path in folder.iterdir()] == ["labels.db"]
        (folder / "labels.db").chmod(0o444)
        folder.chmod(0o555)
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                os._exit(len(list(read_rows(folder / "labels.db"))))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    finally:
        shutil.rmtree(folder)
