"""The file of labels: one label once, for who has the item, and nothing acknowledged that is not on disk."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from gro.errors import GroError
from gro.labels.answers import KINDS, checked, worths
from gro.labels.items import Item, digest
from gro.labels.reading import Labels, kind_of
from gro.labels.store import Conflict, NotSaved, Store
from gro.web.label.rows import read_items
from web.labelling import items, prefer, say, sent, stored


@pytest.mark.fault("W1")
def test_two_people_never_have_the_same_item(tmp_path):
    store = stored(tmp_path, n=3)
    a, b, c = (store.offer(who) for who in "abc")
    assert len({offered.item for offered in (a, b, c) if offered}) == 3
    assert store.offer("d") is None  # all are being looked at
    assert store.offer("a") == a  # a second tab shows the same
    store.label(sent(a, "a", {"choice": 0}))
    assert store.offer("a") is None


@pytest.mark.fault("W1")
def test_each_item_is_labelled_by_as_many_as_are_wanted(tmp_path):
    store = stored(tmp_path, n=2, per_item=2)
    got = Counter(offered.item for who in "abcd" if (offered := store.offer(who)) is not None)
    assert sorted(got.values()) == [2, 2]
    assert store.offer("e") is None
    for who in "abcd":
        say(store, who, {"choice": 1})
    assert [store.offer(who) for who in "abcde"] == [None] * 5
    assert store.read("SELECT done FROM items") == [(2,), (2,)]


@pytest.mark.fault("W1")
def test_the_second_tab_is_told_who_labelled_it(tmp_path):
    store = stored(tmp_path, n=1)
    first = store.offer("anna")
    store.label(sent(first, "anna", {"choice": 0}, key="first tab"))
    with pytest.raises(Conflict, match="already labelled by anna"):
        store.label(sent(first, "anna", {"choice": 1}, key="second tab"))
    assert store.read("SELECT answer FROM labels") == [('{"choice": 0}',)]


@pytest.mark.fault("W1")
def test_who_was_away_too_long_is_told_who_has_it_now(tmp_path):
    store = stored(tmp_path, n=1)
    stale = store.offer("anna", seconds=-1)
    taken = store.offer("ben")
    with pytest.raises(Conflict, match="the time for it ended, and ben has it"):
        store.label(sent(stale, "anna", {"choice": 0}))
    store.label(sent(taken, "ben", {"choice": 0}))
    with pytest.raises(Conflict, match="already labelled by ben"):
        store.label(sent(stale, "anna", {"choice": 0}))
    assert store.read("SELECT annotator FROM labels") == [("ben",)]


def test_who_was_away_long_while_nobody_came_may_still_answer(tmp_path):
    store = stored(tmp_path, n=1)
    store.label(sent(store.offer("anna", seconds=-1), "anna", {"choice": 0}))
    assert store.read("SELECT count(*) FROM labels") == [(1,)]


@pytest.mark.fault("W1")
def test_a_form_from_before_an_undo_is_stale(tmp_path):
    store = stored(tmp_path, n=1)
    form = store.offer("anna")
    number = store.label(sent(form, "anna", {"choice": 0}, key="the first"))["label"]
    again = store.undo("anna", number)
    assert again is not None
    assert form is not None
    assert again.item == form.item
    assert again.completions == form.completions  # the sides do not change
    with pytest.raises(Conflict, match="an old one"):
        store.label(sent(form, "anna", {"choice": 1}, key="the other"))
    store.label(sent(again, "anna", {"choice": 1}, key="the second"))
    rows = store.read("SELECT answer, version, withdrawn IS NULL FROM labels ORDER BY id")
    assert rows == [('{"choice": 0}', 1, 0), ('{"choice": 1}', 2, 1)]  # withdrawn, not deleted


def test_a_copy_without_the_log_has_every_label(tmp_path):
    """While the page and the run that waits for it both have the file open."""
    store = stored(tmp_path, n=3)
    with Store(store.path) as waiting:
        for number in (1, 2, 3):
            last = say(store, "anna", {"choice": 0})
            assert waiting.read("SELECT count(*) FROM labels") == [(number,)]
            copy = tmp_path / f"copy-{number}.db"
            shutil.copy(store.path, copy)
            with Labels(copy) as found:
                assert found.read("SELECT count(*), max(id) FROM labels") == [(number, last)]
        store.undo("anna", last)
        shutil.copy(store.path, tmp_path / "undone.db")
        with Labels(tmp_path / "undone.db") as found:
            assert found.read("SELECT count(*) FROM labels WHERE withdrawn IS NULL") == [(2,)]


@pytest.mark.fault("W3")
def test_nothing_is_said_to_be_saved_in_a_file_that_is_gone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    store = stored(folder, n=2)
    form = sent(store.offer("anna"), "anna", {"choice": 0})
    folder.rename(tmp_path / "elsewhere")
    for again in (False, True):
        if again:
            folder.mkdir()
            stored(folder, n=2).close()
        with pytest.raises(NotSaved, match="has been removed or replaced since it was opened"):
            store.label(form)
    for place in (folder, tmp_path / "elsewhere"):
        with Labels(place / "labels.db") as found:
            assert found.read("SELECT count(*) FROM labels") == [(0,)]


@pytest.mark.fault("W2")
def test_the_same_request_again_is_the_same_label(tmp_path):
    store = stored(tmp_path, n=2)
    form = sent(store.offer("anna"), "anna", {"choice": 0})
    first = store.label(form)
    assert store.label(form) == first | {"repeated": True}
    assert store.undo("anna", first["label"]) == store.undo("anna", first["label"])
    assert store.label(form) == first | {"repeated": True}  # a late replay does not bring it back
    assert store.read("SELECT count(*), sum(withdrawn IS NULL) FROM labels") == [(1, 0)]
    assert store.read("SELECT sum(done) FROM items") == [(0,)]


@pytest.mark.fault("W2")
def test_a_key_belongs_to_one_label(tmp_path):
    store = stored(tmp_path, n=2)
    form = sent(store.offer("anna"), "anna", {"choice": 0})
    store.label(form)
    for other in (replace(form, answer={"choice": 1}), replace(form, annotator="ben"), replace(form, item="x")):
        with pytest.raises(Conflict, match="another label"):
            store.label(other)


@pytest.mark.fault("W1", "W2")
def test_a_crowd_labels_everything_once(tmp_path):
    """Eight people in threads on two connections, each request sent twice at the same time."""
    stores = [stored(tmp_path, n=40), Store(tmp_path / "labels.db")]
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while (offered := stores[number % 2].offer(f"p{number}")) is not None:
                form = sent(offered, f"p{number}", {"choice": 0})
                both = [threading.Thread(target=store.label, args=(form,)) for store in stores]
                for thread in both:
                    thread.start()
                for thread in both:
                    thread.join()
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert stores[0].read("SELECT count(*), count(DISTINCT item), count(DISTINCT key) FROM labels") == [(40, 40, 40)]
    assert stores[0].read("SELECT count(*) FROM leases") == [(0,)]


def test_a_skip_counts_for_nothing_and_can_be_undone(tmp_path):
    store = stored(tmp_path, n=1)
    number = say(store, "anna", {"skip": True})
    assert store.offer("anna") is None
    assert store.read("SELECT done FROM items") == [(0,)]
    other = store.offer("ben")
    assert other is not None
    store.undo("ben", say(store, "ben", {"choice": 0}))
    assert store.undo("anna", number) is not None
    with pytest.raises(Conflict, match="ben has no label number 1"):
        store.undo("ben", 1)


def test_sides_are_shuffled_by_person_and_recorded(tmp_path):
    store = stored(tmp_path, n=60, per_item=2, seed=3)
    lefts: Counter[tuple[str, str]] = Counter()
    for who in ("anna", "ben"):
        while (offered := store.offer(who)) is not None:
            lefts[who, str(offered.completions[0])[:12]] += 1
            shown = [digest(c) for c in offered.completions]
            number = store.label(sent(offered, who, {"choice": 0}))["label"]
            assert json.loads(store.read("SELECT shown FROM labels WHERE id = ?", (number,))[0][0]) == shown
    assert all(15 < count < 45 for count in lefts.values())  # 30 ± 4 of 60
    assert len(lefts) == 4
    same = Store(tmp_path / "other.db", seed=3)
    same.add(items(60))
    first, again = (
        store.read("SELECT shown FROM labels WHERE annotator = 'anna' ORDER BY id LIMIT 1"),
        same.offer("anna"),
    )
    assert again is not None
    assert json.loads(first[0][0]) == [digest(c) for c in again.completions]


@pytest.mark.fault("W9")
def test_items_are_known_by_their_content(tmp_path):
    a, b = Item("p", ["x", "y"]), Item("p", ["y", "x"])
    assert a.id == b.id
    assert len({a.id, Item("p", ["x", "z"]).id, Item("q", ["x", "y"]).id, Item("px", ["", "y"]).id}) == 4
    store = stored(tmp_path, n=3)
    number = prefer(store, "anna", "completion 0 of 0")
    # The file is made again: rows come in another order, and one completion is another.
    assert store.add([Item("new", ["1", "2"]), *reversed(items(3))]) == 1
    item, sha, shown = store.read("SELECT item, prompt_sha, shown FROM labels WHERE id = ?", (number,))[0]
    assert item == items(3)[0].id
    assert sha == digest("prompt 0")
    assert set(json.loads(shown)) == {digest("completion 0 of 0"), digest("completion 1 of 0")}
    assert store.add([Item("prompt 0", ["completion 0 of 0", "another"])]) == 1  # other texts are another item
    assert store.read("SELECT done FROM items WHERE id = ?", (item,)) == [(1,)]


@pytest.mark.fault("W3")
def test_a_full_disk_says_not_saved(tmp_path):
    store = stored(tmp_path, n=50)
    done = [say(store, "anna", {"choice": 0}, rationale="x" * 500) for _ in range(3)]
    full = store.read("PRAGMA page_count")[0][0]
    store.read(f"PRAGMA max_page_count = {full}")  # SQLite then says what it says of a full disk
    form = sent(store.offer("anna"), "anna", {"choice": 0}, rationale="x" * 9000)
    with pytest.raises(NotSaved, match="not saved: database or disk is full"):
        store.label(form)
    assert [n for (n,) in store.read("SELECT id FROM labels")] == done
    store.read("PRAGMA max_page_count = 100000")
    assert not store.label(form)["repeated"]
    assert store.read("PRAGMA synchronous") == [(2,)]  # FULL
    assert store.read("PRAGMA journal_mode") == [("wal",)]


def test_a_file_goes_on_with_its_kind(tmp_path):
    stored(tmp_path, "score5").close()
    assert kind_of(tmp_path / "labels.db").name == "score5"
    with pytest.raises(GroError, match="holds labels of the kind 'score5', not 'pairs'"):
        Store(tmp_path / "labels.db", "pairs")
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(GroError, match=r"text\.db"):
        Store(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE meta (key, value)").connection.commit()
    for name in ("text.db", "other.db", "none.db"):
        with pytest.raises(GroError, match=name):
            kind_of(tmp_path / name)
    with pytest.raises(GroError, match=r"other\.db is not a file of labels"):
        Store(tmp_path / "other.db")


def test_what_an_answer_is():
    good = {
        "pairs": [{"choice": 0}, {"choice": 1}, {"choice": "tie"}, {"skip": True}],
        "best": [{"choice": 2}, {"skip": True}],
        "ranking": [{"ranks": [1, 2, 3]}, {"ranks": [2, 1, 2]}, {"ranks": [1, 1, 1]}, {"ranks": [1, 1, 3]}],
        "score5": [{"scores": [1, 5, 5]}],
        "score10": [{"scores": [10, 1, 7]}],
    }
    bad = {
        "pairs": [{"choice": 2}, {"choice": -1}, {"choice": True}, {"choice": "Tie"}, {"choice": 0, "skip": True}, {}],
        "best": [{"choice": "tie"}, {"choice": 3}, {"choice": 1.0}, None, [], "x"],
        "ranking": [{"ranks": [1, 2]}, {"ranks": [1, 1, 2]}, {"ranks": [2, 3, 3]}, {"ranks": [0, 1, 2]}, {"ranks": 1}],
        "score5": [{"scores": [1, 2, 6]}, {"scores": [0, 1, 1]}, {"scores": []}, {"scores": [1, 2, 2.5]}],
        "score10": [{"scores": [11, 1, 1]}, {"ranks": [1, 2, 3]}, {"skip": False}],
    }
    for name, answers in good.items():
        for answer in answers:
            assert checked(KINDS[name], answer, 2 if name == "pairs" else 3) == answer
    for name, answers in bad.items():
        for answer in answers:
            with pytest.raises(GroError):
                checked(KINDS[name], answer, 2 if name == "pairs" else 3)
    assert worths(KINDS["pairs"], {"choice": 1}, 2) == [0, 1]
    assert worths(KINDS["ranking"], {"ranks": [3, 1, 1]}, 3) == [0, 2, 2]
    assert worths(KINDS["score5"], {"scores": [3, 5]}, 2) == [3, 5]


def rows(path: Path, *found: object) -> Path:
    """A file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_files_are_read_as_trl_writes_them(tmp_path):
    user, other = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}
    answer = {"role": "assistant", "content": "hello"}
    for found, expected in (
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, Item("p", ["a", "b"])),
        ({"chosen": [user, answer], "rejected": [user, other]}, Item([user], [[answer], [other]])),
        ({"prompt": [user], "chosen": [answer], "rejected": [other]}, Item([user], [[answer], [other]])),
        ({"prompt": "p", "completions": ["a", "b"]}, Item("p", ["a", "b"])),
        ({"prompt": "p", "responses": ["a", "b"], "more": 1}, Item("p", ["a", "b"])),
        ({"prompt": [user], "completions": [[answer], [other]]}, Item([user], [[answer], [other]])),
    ):
        assert read_items(rows(tmp_path / "a.jsonl", found), KINDS["pairs"])[0] == [expected], found
    many = rows(tmp_path / "b.jsonl", {"prompt": "p", "completions": ["a", "b", "a", "c"]})
    found, left_out = read_items(many, KINDS["pairs"])
    assert [item.completions for item in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert left_out == {"completions that are there twice": 1}
    assert [item.completions for item in read_items(many, KINDS["ranking"])[0]] == [["a", "b", "c"]]
    same = rows(tmp_path / "c.jsonl", {"prompt": "p", "completions": ["a", "a"]})
    with pytest.raises(GroError, match="nothing to label"):
        read_items(same, KINDS["best"])
    assert read_items(same, KINDS["score5"])[0] == [Item("p", ["a"])]
    with pytest.raises(GroError, match=r"d\.jsonl"):
        read_items(rows(tmp_path / "d.jsonl", {"prompt": "p", "completion": "a"}, {"x": 1}), KINDS["pairs"])
