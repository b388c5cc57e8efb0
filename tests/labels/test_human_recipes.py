"""Recipes in which people are asked: those of the documentation, rows of files, resampling, several processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gro.runs import RunReader
from gro.runs.plain import dump_yaml, load_yaml
from jobs_on_sums import MODEL, SUMS, Done, cli, recipe, write_data, write_rows
from labels.people import labels

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "labelling.md").read_text(encoding="utf-8")
BLOCKS = [load_yaml(block) for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
PUBLISHED = {block["run"]: block for block in BLOCKS if "online" in block}
INNER = {"reward": "regex", "pattern": "[0-9]"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sums, and what `gro quickstart` leaves behind, in small."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    data = tmp_path / "runs" / "quickstart" / "data"
    data.mkdir(parents=True)
    write_rows(data / "train.jsonl", ({"prompt": f"{a}+{b}=", "solution": str(a + b)} for a, b in SUMS))
    return tmp_path


def made(folder: Path, **keys: Any) -> Done:
    """A short run with simulated people."""
    common = {"model": MODEL, "sampling": {"max_new_tokens": 3}, "rewards": [people()]}
    return cli("train", recipe(folder / "job.yaml", **(common | keys)))


def people(**settings: Any) -> dict[str, Any]:
    return {"reward": "human", "simulated": {"reward": INNER, "spread": 0.3}} | settings


@pytest.mark.parametrize("run", ["runs/human", "runs/simulated"])
def test_published_recipes_are_sound(run, folder):
    (folder / "recipe.yaml").write_text(dump_yaml(PUBLISHED[run] | {"model": MODEL}))
    done = cli("check", "recipe.yaml")
    assert done.code == 0, done.err
    assert "the recipe is sound" in done.out
    assert not (folder / run).exists()


def test_the_published_simulation_runs(folder):
    (folder / "recipe.yaml").write_text(dump_yaml(PUBLISHED["runs/simulated"] | {"model": MODEL}))
    done = cli("train", "recipe.yaml", "training.steps=2", "prompts_per_step=4")
    assert done.code == 0, done.err
    assert {"skip" in answer for _, answer in labels(folder / "runs/simulated")} == {False}


def test_rows_of_a_file_are_rated_once(folder):
    rows = [{"prompt": f"{i}+1=", "completions": [str(i + 1), "?", "no"]} for i in range(3)]
    write_rows(folder / "rows.jsonl", rows)
    keys = {"offline": {"path": "rows.jsonl", "kind": "rewarded"}, "algorithm": "rloo", "group_size": 3}
    done = made(folder, **keys, rewards=[people(kind="ranking")], prompts_per_step=3, training={"steps": 3})
    assert done.code == 0, done.err
    assert len(labels(folder / "job")) == 3
    with RunReader(folder / "job") as run:
        first, last = ([r.reward or 0.0 for r in run.rollouts(step) if r.prompt == "0+1="] for step in (1, 3))
    assert sorted(first) == [0, 0.5, 1]
    assert last == first


def test_every_round_of_resampling_asks(folder):
    """Of a reward that is always the same no group is informative, so that every round is used up."""
    keys = {"online": {"path": "sums.jsonl"}, "algorithm": "dapo", "group_size": 2, "resample": {"rounds": 2}}
    same = people(simulated={"reward": {"reward": "regex", "pattern": "^"}})
    done = made(folder, **keys, rewards=[same], prompts_per_step=2, training={"steps": 1})
    assert done.code == 0, done.err
    with RunReader(folder / "job") as run:
        assert run.metrics()["resample/prompts"][1].tolist() == [6]
    assert len(labels(folder / "job")) > 8  # of twelve answers, a few of which may be equal
