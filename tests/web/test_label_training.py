"""From labels to a reward model and to DPO, one command each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gro.labels.answers import KINDS
from gro.labels.store import Store
from gro.runs.plain import dump_yaml, load_yaml
from gro.web.label.rows import read_items
from jobs_on_sums import MODEL, cli, recipe, write_data
from web.labelling import sent


def published(path: str) -> list[dict[str, Any]]:
    """The documentation's recipes that learn from this file."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "labelling.md").read_text(encoding="utf-8")
    recipes = [load_yaml(block) for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    found = [one for one in recipes if one.get("offline") == {"path": path}]
    assert {one["algorithm"] for one in found} == {"bradley_terry", "dpo"}
    return found


@pytest.mark.parametrize("form", ["preference", pytest.param("ranking", marks=pytest.mark.slow)])
def test_labels_train_models(tmp_path, form):
    write_data(tmp_path)
    kind = "pairs" if form == "preference" else "ranking"
    store = Store(tmp_path / "labels.db", kind)
    store.add(read_items(tmp_path / "pairs.jsonl", KINDS[kind])[0][:12])
    while (offered := store.offer("anna")) is not None:
        right = [not str(c).endswith("!") for c in offered.completions]
        answer = {"choice": right.index(True)} if kind == "pairs" else {"ranks": [2 - r for r in right]}
        store.label(sent(offered, "anna", answer))
    store.close()
    path = tmp_path / "labels.db"
    if form == "ranking":
        path = tmp_path / "labels.jsonl"
        done = cli("label-export", tmp_path / "labels.db", "--as", form, "-o", path)
        assert done.code == 0, done.err
        assert len(path.read_text().splitlines()) == 12
    common = {"model": MODEL, "offline": {"path": str(path)}}
    if form == "preference":
        for given in published("labels.db"):
            (tmp_path / "given.yaml").write_text(dump_yaml(given | {"model": MODEL, "run": str(tmp_path / "given")}))
            done = cli("check", tmp_path / "given.yaml", f"offline.path={path}")
            assert done.code == 0, done.err
    name = "bradley_terry" if form == "preference" else "plackett_luce"
    done = cli("reward-model", recipe(tmp_path / "rm.yaml", algorithm=name, **common))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "rm" / "model" / "config.json").read_text())["architectures"]
    if form == "preference":
        done = cli("train", recipe(tmp_path / "dpo.yaml", algorithm="dpo", **common))
        assert done.code == 0, done.err
        assert len(done.steps) == 2
