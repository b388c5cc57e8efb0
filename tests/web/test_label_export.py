"""From labels to data sets and to agreement: numbers by hand, files read back by this library."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from gro.cli.app import app
from gro.data.files import read_rows
from gro.data.layout import detect
from gro.data.rows import Example, parse_row
from gro.data.spec import DataSpec, Piece
from gro.errors import GroError
from gro.labels.agreement import agreement, cohen, fleiss
from gro.labels.export import export, ratings
from gro.labels.items import Item
from gro.labels.reading import Labels
from gro.labels.store import NotSaved, Sent, Store
from gro.web.label.pages import people
from runs.faults import damage
from web.labelling import items, prefer, say, stored


def read(folder: Path, store: Store, form: str, **settings: Any) -> list[Example]:
    """The export as the library's own reader understands it."""
    path = folder / f"{form}.jsonl"
    path.write_text(export(store, form, **settings))
    rows = list(read_rows(path))
    layout = detect(rows[0].fields, DataSpec(str(path)))
    return [parse_row(row, i, layout) for i, row in enumerate(rows)]


def texts(example: Example) -> list[str]:
    """Prompt and completions as plain text."""
    parts = (example.prompt or (), *example.completions)
    return ["".join(p.text if isinstance(p, Piece) else p.content for p in part) for part in parts]


def test_pairs_become_preferences(tmp_path):
    store = stored(tmp_path, n=4, per_item=3)
    for wanted in ("completion 0", "completion 0", "completion 1"):
        prefer(store, wanted + str(len(store.read("SELECT 1 FROM labels"))), wanted)
    for who, answer in (("a", {"choice": "tie"}), ("b", {"choice": "tie"}), ("c", {"choice": "tie"})):
        say(store, who, answer)
    say(store, "a", {"skip": True})
    found = read(tmp_path, store, "preference")
    # Two of three prefer completion 0; the item of ties says nothing, nor the skipped one.
    assert [texts(example) for example in found] == [["prompt 0", "completion 0 of 0", "completion 1 of 0"]]
    assert [example.labels for example in found] == [(1.0, -1.0)]
    each = [texts(example)[1] for example in read(tmp_path, store, "preference", each=True)]
    assert each == ["completion 0 of 0", "completion 0 of 0", "completion 1 of 0"]
    row = json.loads(export(store, "preference").splitlines()[0])
    assert (row["item"], row["people"]) == (items(1)[0].id, 3)
    withdrawn = store.read("SELECT id, annotator FROM labels WHERE item = ? ORDER BY id", (row["item"],))[:2]
    for number, who in withdrawn:
        store.undo(who, number)
    assert json.loads(export(store, "preference"))["chosen"] == "completion 1 of 0"


def labelled(store: Store, who: str, worth: dict[str, int], key: str, ranks: bool = False) -> None:
    """Gives each completion its number, wherever it stands."""
    offered = store.offer(who)
    assert offered is not None
    from web.labelling import sent

    store.label(sent(offered, who, {key: [worth[str(c)[:12]] for c in offered.completions]}))


def test_rankings_and_scores(tmp_path):
    store = stored(tmp_path, "ranking", n=1, k=3, per_item=2)
    labelled(store, "a", {"completion 0": 2, "completion 1": 1, "completion 2": 3}, "ranks")
    labelled(store, "b", {"completion 0": 2, "completion 1": 1, "completion 2": 2}, "ranks")
    row = json.loads(export(store, "ranking"))
    assert [c[11] for c in row["completions"]] == ["1", "0", "2"]
    assert (row["ranks"], row["rewards"]) == ([1, 2, 3], [2.0, 1.0, 0.0])
    (example,) = read(tmp_path, store, "ranking")  # read as rewards, which is how a reward model learns a ranking
    assert example.labels == (2.0, 1.0, 0.0)
    pairs = [texts(e)[1:] for e in read(tmp_path, store, "preference")]
    assert [(a[11], b[11]) for a, b in pairs] == [("0", "2"), ("1", "0"), ("1", "2")]
    assert json.loads(export(store, "rewarded"))["rewards"] == [1.0, 2.0, 0.5]
    (tmp_path / "scores").mkdir()
    store = stored(tmp_path / "scores", "score5", n=1, k=3, per_item=2)
    labelled(store, "a", {"completion 0": 5, "completion 1": 3, "completion 2": 1}, "scores")
    labelled(store, "b", {"completion 0": 4, "completion 1": 3, "completion 2": 2}, "scores")
    assert json.loads(export(store, "rewarded"))["rewards"] == [4.5, 3.0, 1.5]
    unpaired = [(texts(e)[1][11], e.labels) for e in read(tmp_path, store, "unpaired")]
    assert unpaired == [("0", (1.0,)), ("2", (-1.0,))]  # 3 is the middle of 1–5, and says nothing
    assert agreement(ratings(store)).shared == 3


def test_best_of_k(tmp_path):
    store = stored(tmp_path, "best", n=1, k=3)
    offered = store.offer("a")
    assert offered is not None
    place = offered.completions.index("completion 1 of 0")
    say(store, "a", {"choice": place})
    pairs = [texts(e)[1:] for e in read(tmp_path, store, "preference")]
    assert [(a[11], b[11]) for a, b in pairs] == [("1", "0"), ("1", "2")]
    assert [e.labels[0] for e in read(tmp_path, store, "unpaired")] == [-1, 1, -1]


def test_messages_stay_messages(tmp_path):
    prompt, a, b = ([{"role": r, "content": c}] for r, c in (("user", "hi"), ("assistant", "a"), ("assistant", "b")))
    store = Store(tmp_path / "labels.db")
    store.add([Item(prompt, [a, b])])
    say(store, "anna", {"choice": 0})
    row = json.loads(export(store, "preference"))
    assert row["prompt"] == prompt
    assert sorted((row["chosen"][0]["content"], row["rejected"][0]["content"])) == ["a", "b"]
    assert texts(read(tmp_path, store, "preference")[0])[0] == "hi"


@pytest.mark.fault("W9")
def test_empty_answers_of_a_run_are_left_out_of_what_training_reads(tmp_path):
    store = Store(tmp_path / "labels.db", "score5")
    store.add([Item("p", ["", "good", "bad"]), Item("q", [" \n"])])
    for _ in range(2):
        offered = store.offer("a")
        assert offered is not None
        scores = [{"good": 5, "bad": 2}.get(str(text), 1) for text in offered.completions]
        store.label(Sent("a", offered.item, offered.lease, f"key of {offered.item}", {"scores": scores}))
    assert [texts(example) for example in read(tmp_path, store, "preference")] == [["p", "good", "bad"]]
    (rewarded,) = read(tmp_path, store, "rewarded")
    assert (texts(rewarded), rewarded.labels) == (["p", "good", "bad"], (5.0, 2.0))
    (ranked,) = read(tmp_path, store, "ranking")
    assert texts(ranked) == ["p", "good", "bad"]
    assert [texts(example) for example in read(tmp_path, store, "unpaired")] == [["p", "good"], ["p", "bad"]]
    assert export(store, "csv").count("\r\n") == 5


def test_a_label_of_other_texts_is_never_exported(tmp_path):
    store = stored(tmp_path, n=2)
    number = say(store, "anna", {"choice": 0})
    with store.transaction() as db:
        db.execute('UPDATE items SET completions = \'["x", "completion 1 of 0"]\' WHERE id = ?', (items(1)[0].id,))
    with pytest.raises(GroError, match=f"label {number} was made for other texts"):
        export(store, "preference")


@pytest.mark.fault("W8")
def test_no_cell_is_a_formula(tmp_path):
    bad = [
        '=cmd|"/c calc"!A1',
        "+1",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "\ufeff=1",
        '"=1',
        "＝1",
        "'=1",
        "|x",
        "%0A=1",
    ]
    store = Store(tmp_path / "labels.db", "score5", per_item=1)
    store.add([Item(b, [b, f'{b}, "quoted"\nand more']) for b in bad])
    for b in bad:
        say(store, f"={b.strip()}", {"scores": [1, 2]}, rationale=b)
    text = export(store, "csv")
    found = list(csv.reader(io.StringIO(text, newline="")))
    assert len(found) == 1 + 2 * len(bad)
    for row in found[1:]:
        for cell in row:
            assert cell[:1] == "'" or cell[:1].isalnum() or not cell, cell
    assert found[1][4] == "'" + bad[0] or found[1][4].startswith("'" + bad[0])
    assert all(line.startswith('"') for line in text.split("\r\n")[:-1] if line[:5] == '"item')


def test_label_studio(tmp_path):
    store = stored(tmp_path, n=2)
    prefer(store, "anna", "completion 1")
    say(store, "anna", {"choice": "tie"}, rationale="same", seconds=2.5)
    first, second = json.loads(export(store, "label-studio"))
    assert first["data"] == {"prompt": "prompt 0", "answer1": "completion 0 of 0", "answer2": "completion 1 of 0"}
    (result,) = first["annotations"][0]["result"]
    assert {key: result[key] for key in ("from_name", "to_name", "type", "value")} == {
        "from_name": "preference", "to_name": "preference", "type": "pairwise", "value": {"selected": "right"},
    }  # fmt: skip
    assert [r["value"] for r in second["annotations"][0]["result"]] == [{"choices": ["tie"]}, {"text": ["same"]}]
    assert second["annotations"][0]["lead_time"] == 2.5


def test_cohen_by_hand_and_by_scikit_learn():
    # Of 50 both say yes 20 times and no 15 times: observed 0.7; chance 0.5·0.6 + 0.5·0.4 = 0.5; κ = 0.2/0.5.
    a = "y" * 25 + "n" * 25
    b = "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    assert cohen(a, b) == pytest.approx(0.4, abs=1e-12)
    assert cohen("yyy", "yyy") is None  # always the same word: chance alone agrees fully
    assert cohen("", "") is None
    assert cohen("yn", "ny") == -1
    draw = random.Random(0)
    for _ in range(50):
        a, b = ([draw.choice("abc") for _ in range(30)] for _ in "ab")
        assert cohen(a, b) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_fleiss_by_hand():
    # The worked example of Fleiss (1971) in its usual form: 10 questions, 14 people, 5 categories; κ = 0.210.
    table = """0 0 0 0 14
    0 2 6 4 2
    0 0 3 5 6
    0 3 9 2 0
    2 2 8 1 1
    7 7 0 0 0
    3 2 6 3 0
    2 5 3 2 2
    6 5 2 1 0
    0 2 2 3 7"""
    rated = [[c for c, n in enumerate(map(int, line.split())) for _ in range(n)] for line in table.splitlines()]
    assert fleiss(rated) == pytest.approx(0.20993, abs=5e-6)
    # Two people, two questions, yy and yn: pairs 1 and 0, observed ½; yes 3 of 4, chance 9/16 + 1/16; κ = −⅓.
    assert fleiss(["yy", "yn"]) == pytest.approx(-1 / 3, abs=1e-12)
    assert fleiss(["yy", "yn", "y"]) == fleiss(["yy", "yn"])
    assert fleiss([]) is fleiss(["y"]) is fleiss(["yy", "yy"]) is None


def test_agreement_is_about_texts_and_not_about_sides(tmp_path):
    store = stored(tmp_path, n=30, per_item=2, seed=1)
    for i in range(30):
        prefer(store, "anna", f"completion {i % 2}")
        prefer(store, "ben", f"completion {i % 2}")
    sides = store.read("SELECT annotator, answer FROM labels ORDER BY item")
    assert len({answer for _, answer in sides}) == 2
    found = agreement(ratings(store))
    assert (found.shared, found.same, found.fleiss) == (30, 1.0, 1.0)
    assert found.pairs == [("anna", "ben", 30, 1.0)]


def test_who_has_labelled_and_how_fast(tmp_path):
    """A skip has no part in the median."""
    store = stored(tmp_path, n=6)
    for seconds in (9.0, 1.0, 3.0, 4.0, None):
        say(store, "ben", {"choice": 0}, seconds=seconds)
    say(store, "anna", {"skip": True}, seconds=2.0)
    assert people(store) == [
        {"name": "anna", "labels": 0, "skipped": 1, "seconds": None},
        {"name": "ben", "labels": 5, "skipped": 0, "seconds": 3.5},
    ]


def test_the_commands(tmp_path):
    store = stored(tmp_path, n=2)
    labels, output = tmp_path / "labels.db", tmp_path / "out.jsonl"
    runner = CliRunner()
    with pytest.raises(GroError, match="no labels that can be written as preference"):
        runner.invoke(app, ["label-export", str(labels)], catch_exceptions=False)
    prefer(store, "anna", "completion 1")
    with pytest.raises(GroError, match="did you mean 'preference'"):
        runner.invoke(app, ["label-export", str(labels), "--as", "preferences"], catch_exceptions=False)
    printed = runner.invoke(app, ["label-export", str(labels)], catch_exceptions=False).stdout
    assert json.loads(printed)["chosen"] == "completion 1 of 0"
    runner.invoke(app, ["label-export", str(labels), "-o", str(output)], catch_exceptions=False)
    assert output.read_text() == printed
    with pytest.raises(GroError, match=r"new\.db does not exist: give a file of prompts"):
        runner.invoke(app, ["label", "--labels", str(tmp_path / "new.db")], catch_exceptions=False)
    with pytest.raises(GroError, match="did you mean 'ranking'"):
        runner.invoke(app, ["label", "--labels", str(labels), "--kind", "rankings"], catch_exceptions=False)


def test_a_damaged_file_is_named(tmp_path):
    store = stored(tmp_path, n=300)
    for _ in range(200):
        say(store, "a", {"choice": 0})
    store.close()
    damage(store.path)
    with Labels(store.path) as labels, pytest.raises(GroError, match=r"labels\.db cannot be read: .*malformed"):
        export(labels, "csv")
    store = Store(store.path)
    with pytest.raises(NotSaved, match=r"not saved: .*labels\.db is damaged: .*malformed"):
        store.add(items(600)[300:])
