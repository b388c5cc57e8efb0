"""The quickstart's task is what it says, and (slow) its model learns it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gro.config import check_config
from gro.errors import GroError
from gro.quickstart import FORGETFUL, HELD_OUT, _recipes, _write_data, quickstart, without_carry
from gro.runs.reader import RunReader


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(38, 47, 75), (97, 70, 67), (36, 31, 67), (99, 99, 88), (5, 5, 0), (55, 55, 0)]
)
def test_who_forgets_to_carry(a, b, expected):
    assert without_carry(a, b) == expected


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_data(tmp_path):
    _write_data(tmp_path / "data", seed=3)
    train, held_out = rows(tmp_path / "data" / "train.jsonl"), rows(tmp_path / "data" / "held_out.jsonl")
    prompts = {row["prompt"] for row in train} | {row["prompt"] for row in held_out}
    assert (len(train), len(held_out), len(prompts)) == (10_000 - HELD_OUT, HELD_OUT, 10_000)
    for row in train + held_out:
        a, b = row["prompt"].rstrip("=").split("+")
        assert int(row["solution"]) == int(a) + int(b)
        assert int(row["completion"]) in (int(a) + int(b), without_carry(int(a), int(b)))
    assert all(row["completion"] == row["solution"] for row in held_out)
    # 1 − (share of pairs of numbers whose sum needs no carry), which is (55/100)² of them.
    wrong = sum(row["completion"] != row["solution"] for row in train) / len(train)
    assert wrong == pytest.approx(FORGETFUL * (1 - 0.55**2), abs=0.02)


def test_recipes_are_sound(tmp_path):
    directory = tmp_path / "here"
    _write_data(directory / "data", seed=0)
    for name, recipe in _recipes(directory, 0).items():
        assert check_config(recipe, name).run == f"{directory}/{name}"


def test_never_writes_over_something(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(GroError, match="not empty"):
        quickstart(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_learns_to_add(tmp_path):
    command = [sys.executable, "-m", "gro.cli", "quickstart", "--run", str(tmp_path / "run"), "--seed", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=True
    )
    summary = RunReader(tmp_path / "run" / "gro").summary
    assert summary["before"]["eval_reward"] <= 0.5
    assert summary["after"]["eval_reward"] >= 0.9
    assert "held-out sums solved" in done.stdout
