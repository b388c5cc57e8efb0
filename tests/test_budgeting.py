"""`training.tokens_per_micro: auto` in whole jobs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from unittest import mock

import pytest
import yaml

import gro.jobs.budgeting as budgeting
from gro.training.budget import Budget
from jobs_on_sums import cli, dpo, sft, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("auto")
    write_data(where)
    assert cli("train", sft(where)).code == 0
    return where


def losses(run: Path) -> list[float]:
    with sqlite3.connect(run / "run.db") as database:
        (names,) = ([row[1] for row in database.execute("pragma table_info(metrics)")],)
        assert "value" in names
        found = database.execute("select * from metrics order by step").fetchall()
    return [row[names.index("value")] for row in found if "loss" in row]


def test_a_run_finds_its_number_keeps_it_and_learns_the_same(folder: Path) -> None:
    fixed = cli("train", dpo(folder, "fixed", training__tokens_per_micro=4096))
    assert fixed.code == 0, fixed.err
    auto = cli("train", dpo(folder, "auto", training__tokens_per_micro="auto"))
    assert auto.code == 0, auto.err
    assert "tokens_per_micro: auto is 65,536" in auto.out
    assert yaml.safe_load((folder / "auto" / "config.yaml").read_text())["training"]["tokens_per_micro"] == "auto"
    with sqlite3.connect(folder / "auto" / "run.db") as database:
        events = "".join(str(row) for row in database.execute("select * from events"))
    assert '"tokens_per_micro": 65536' in events or '"tokens_per_micro":65536' in events
    assert losses(folder / "auto") == pytest.approx(losses(folder / "fixed"), abs=1e-5)


def test_a_later_attempt_takes_what_the_first_one_found(folder: Path) -> None:
    path = dpo(folder, "twice", training__tokens_per_micro="auto")
    with (
        mock.patch.object(budgeting, "find_budget", return_value=Budget(777, "auto is 777")),
        mock.patch("gro.jobs.train.train", side_effect=KeyboardInterrupt),
    ):
        assert cli("train", path).code != 0
    with mock.patch.object(budgeting, "find_budget", side_effect=AssertionError("it is known")):
        again = cli("train", path)
    assert again.code == 0, again.err
    assert "auto is" not in again.out


def test_jobs_that_train_nothing_and_wrong_words(folder: Path) -> None:
    path = dpo(folder, "word", training__tokens_per_micro="automatic")
    refused = cli("train", path)
    assert refused.code != 0
    assert "training.tokens_per_micro" in refused.err + refused.out
    assert "auto" in refused.err + refused.out
    assert json.dumps("Traceback") not in refused.err
