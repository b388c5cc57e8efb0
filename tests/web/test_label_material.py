"""What is labelled may be fresh samples of a model, and a reward model may say what to ask first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gro.errors import GroError
from gro.labels.items import Item
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel
from gro.web.label import material
from gro.web.label.command import Asked, prepare
from jobs_on_sums import write_data, write_rows
from tiny import tiny_model, tiny_tokenizer
from web.labelling import say, stored


@pytest.fixture(params=["here", pytest.param("elsewhere", marks=pytest.mark.slow)])
def process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has torch already, or in one of its own as the command does it."""
    if request.param == "here":
        work = {"samples": material._samples, "gaps": material._gaps}
        monkeypatch.setattr(material, "_elsewhere", lambda what, **settings: work[what](settings))


@pytest.mark.usefixtures("process")
def test_fresh_samples_of_a_model(tmp_path):
    write_data(tmp_path)
    policy = Policy(tiny_model(layers=1), tiny_tokenizer())
    policy.save(tmp_path / "model")
    asked = Asked(data=tmp_path / "sums.jsonl", labels=tmp_path / "l.db", model=str(tmp_path / "model"), n=3, limit=2,
                  max_new_tokens=4, kind="score5", seed=1)  # fmt: skip
    store = prepare(asked)
    rows = [json.loads(line) for line in (tmp_path / "l.samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["0+0=", "0+1="]
    assert all(1 <= len(row["completions"]) <= 3 for row in rows)
    assert store.read("SELECT count(*) FROM items") == [(2,)]
    store.close()


@pytest.mark.usefixtures("process")
def test_what_a_reward_model_is_least_certain_of_comes_first(tmp_path):
    torch.manual_seed(0)
    model = RewardModel.beside(Policy(tiny_model(layers=1), tiny_tokenizer()))
    torch.nn.init.normal_(model.head.weight)
    model.save(tmp_path / "rm")
    items = [Item(f"{a}+{b}=", [str(a + b), f"{a}{b}!"]) for a in range(3) for b in range(3)]
    rows = ({"prompt": i.prompt, "chosen": i.completions[0], "rejected": i.completions[1]} for i in items)
    data = write_rows(tmp_path / "d.jsonl", rows)
    from gro.data.encode import load_dataset
    from gro.data.spec import DataSpec

    groups = list(load_dataset(DataSpec(str(data)), model.tokenizer))
    scores = model.scores(groups, 4096).view(-1, 2)
    gaps = (scores[:, 0] - scores[:, 1]).abs().tolist()
    expected = [items[i].id for i in sorted(range(9), key=gaps.__getitem__)]
    assert len(set(gaps)) == 9
    store = prepare(Asked(data=data, labels=tmp_path / "l.db", reward_model=tmp_path / "rm"))
    assert [item for (item,) in store.read("SELECT id FROM items ORDER BY place")] == expected
    offered = store.offer("anna")
    assert offered is not None
    assert offered.item == expected[0]
    store.close()


def test_errors_of_the_other_process_are_ours(tmp_path):
    with pytest.raises(GroError, match="KeyError: 'nothing'"):
        material._elsewhere("nothing")
    with pytest.raises(GroError, match="needs prompts"):
        prepare(Asked(data=None, labels=tmp_path / "l.db", model="m"))
    with pytest.raises(GroError, match="--temperature: it is of fresh samples"):
        prepare(Asked(data=tmp_path / "a.jsonl", labels=tmp_path / "l.db", temperature=0.5))
    assert not (tmp_path / "l.db").exists()


def test_data_that_cannot_be_labelled_are_refused_before_anything_is_kept(tmp_path):
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    with pytest.raises(GroError, match=r"found the columns 'prompt'; expected completions, or chosen.* With --model"):
        prepare(Asked(data=prompts, labels=tmp_path / "new.db"))
    assert not (tmp_path / "new.db").exists()
    store = stored(tmp_path, "ranking", n=1, k=3)
    say(store, "anna", {"ranks": [1, 2, 3]})
    for labels in (store.path, tmp_path / "new.db"):  # what was said of items would be more items
        with pytest.raises(GroError, match=r"is a file of labels; to go on with it: gro label --labels .*labels\.db"):
            prepare(Asked(data=store.path, labels=labels))
    assert store.read("SELECT count(*) FROM items") == [(1,)]
    store.close()


def test_the_server_never_imports_torch():
    code = "import sys, gro.web.label.command, gro.labels.export, gro.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
