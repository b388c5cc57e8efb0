"""`gro label RUN`: the file of ratings of a run, in whatever state the run is."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError
from gro.labels.items import Item
from gro.labels.reading import kind_of
from gro.labels.store import Store
from gro.labels.used import ask, begin, use
from gro.raters.human import RATINGS
from gro.runs import Run
from gro.web.app import create_app
from gro.web.label.command import Asked, run_label
from gro.web.label.pages import progress, routes
from gro.web.label.waiting import WaitingRun
from jobs_on_sums import cli, write_rows
from web.test_web_guard import PORT, TOKEN, write
from web.test_web_guard import ask as ask_page

CONFIG = {
    "run": "run",
    "training": {"seed": 3},
    "rewards": ["length", {"reward": "human", "kind": "ranking", "per_item": 2}],
}


def begun(folder: Path, **config: object) -> Path:
    """A run that somebody has begun, and that nobody is at."""
    Run.open(folder / "run", CONFIG | config).close()
    return folder / "run"


def test_the_file_is_made_where_the_run_has_not_come_so_far(tmp_path):
    """As the recipe says, so that the run then finds what it would have made."""
    run = WaitingRun(begun(tmp_path))
    store = run.store()
    assert (kind_of(store.path).name, store.per_item, store.seed) == ("ranking", 2, 3)
    assert (run.path / RATINGS).is_file()
    Run.open(run.path, CONFIG).close()  # which is still a run, and no directory of something else


def test_the_run_and_the_page_may_both_be_the_first(tmp_path):
    """Both make the file where it is not there yet, at the same moment."""

    def make(number: int, together: threading.Barrier) -> str:
        together.wait()
        store = Store(tmp_path / f"{number}.db", "score5")
        store.close()
        return store.kind.name

    with ThreadPoolExecutor(8) as threads:
        for number in range(60):
            together = threading.Barrier(8)
            made = [threads.submit(make, number, together) for _ in range(8)]
            assert [one.result(60) for one in made] == ["score5"] * 8


def test_how_far_the_run_is(tmp_path):
    assert WaitingRun(begun(tmp_path)).status == "interrupted"
    with Run.open(tmp_path / "run", CONFIG) as run:
        assert WaitingRun(tmp_path / "run").status == "running"
        run.finish()
    assert WaitingRun(tmp_path / "run").status == "finished"


def test_what_a_run_has_used_is_done(tmp_path):
    store = Store(tmp_path / RATINGS, "score5")
    store.add([Item("p", ["a"]), Item("p", ["b"])])
    with store.transaction() as db:
        for item in (Item("p", ["a"]).id, Item("p", ["b"]).id):
            db.execute("INSERT INTO used VALUES (?, 0)", (item,))
    assert progress(store, "anna") == {"wanted": 2, "done": 2, "mine": 0, "skipped": 0}
    assert store.offer("anna") is None
    assert use(store, [Item("p", ["a"]).id]) is None  # nobody has said anything


def test_the_page_asks_as_many_people_as_the_run_does_by_now(tmp_path):
    """The page is open already when the run is begun anew with other settings."""
    run = WaitingRun(begun(tmp_path, rewards=[{"reward": "human", "kind": "score5", "per_item": 1}]))
    store = run.store()
    application = create_app(routes(store, run=run), token=TOKEN, port=PORT)
    headers = write(application)

    def post(question: str, **body: object) -> tuple[int, dict[str, Any]]:
        told = [json.dumps(body).encode()]
        status, _, found = ask_page(application, "POST", f"/api/label/{question}", headers=headers, body=told)
        return status, json.loads(found)

    def answered(who: str) -> None:
        item = post("next", annotator=who)[1]["item"]
        sent = {"item": item["item"], "lease": item["lease"], "key": f"the key of {who}", "answer": {"scores": [3]}}
        assert post("save", annotator=who, **sent)[0] == 200

    trainer = Store(store.path, "score5")
    how = {"per_item": 1, "seed": 3, "simulated": None}
    begin(trainer, how, [])
    ask(trainer, [Item("p", ["a"])])
    answered("anna")
    assert post("next", annotator="ben")[1]["progress"] == {"wanted": 1, "done": 1, "mine": 0, "skipped": 0}
    begin(trainer, how | {"per_item": 2}, [])
    found = post("next", annotator="ben")[1]
    assert (found["progress"]["wanted"], found["progress"]["done"]) == (2, 1)
    answered("ben")
    assert post("next", annotator="cleo")[1]["item"] is None
    begin(trainer, how, [])
    assert post("next", annotator="cleo")[1]["progress"]["wanted"] == 1
    trainer.close()
    store.path.unlink()
    store.path.with_name("ratings.db-wal").unlink(missing_ok=True)
    store.path.with_name("ratings.db-shm").unlink(missing_ok=True)
    run.store().close()
    status, found = post("next", annotator="anna")
    assert (status, "ratings.db has been removed or replaced" in found["error"]) == (507, True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"labels": Path("mine.db")}, "--labels: .* is a run, whose recipe says what is asked"),
        ({"kind": "pairs"}, "--kind: "),
        ({"per_item": 3}, "--per-item: "),
        ({"seed": 1}, "--seed: "),
        ({"n": 4}, "-n: "),
        ({"reward_model": Path("judge")}, "--reward-model: "),
    ],
)
def test_what_the_recipe_says_cannot_be_said_again(tmp_path, asked, said):
    with pytest.raises(GroError, match=said):
        run_label(Asked(**({"data": begun(tmp_path), "labels": Path("labels.db")} | asked)))


def test_what_is_no_run_that_waits_for_people(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("database: local\n")
    for data, said in (
        (begun(tmp_path, rewards=["length"]), "the recipe of this run asks nobody: none of its rewards is human"),
        (tmp_path, "is a directory and no run"),
        (other, "is not the configuration of a run"),
        (tmp_path / "later", "later does not exist; to label for a run, start gro train first"),
    ):
        done = cli("label", data, "--labels", tmp_path / "labels.db")
        assert done.code == 2
        assert said in done.err.replace("\n", " ")
    assert not (tmp_path / "labels.db").exists()
    assert "there is no such file of labels" in cli("label-export", begun(tmp_path)).err


def test_the_command_serves_it(tmp_path):
    command = [sys.executable, "-u", "-m", "gro", "label", str(begun(tmp_path))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert said[0].endswith("ratings.db: 0 items to label as ranking, 0 with labels\n")
    assert said[1].startswith("http://127.0.0.1:")


def test_one_item_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gro.web.label.command.serve", lambda *args, **settings: None)
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(2)]
    for n, words in ((1, "1 item"), (2, "2 items")):
        write_rows(tmp_path / "pairs.jsonl", rows[:n])
        run_label(Asked(data=tmp_path / "pairs.jsonl", labels=tmp_path / f"{n}.db"))
        assert capsys.readouterr().out == f"{tmp_path / f'{n}.db'}: {words} to label as pairs, 0 with labels\n"
