"""`gro eval` by samples, and of one model against another: by a reward, and by a judge over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gro.evaluation.estimates import proportion
from gro.evaluation.pass_at_k import pass_at_k
from gro.runs import RunReader
from jobs_on_sums import cli, recipe, sft, write_data, write_rows
from judges.chat_server import ChatServer, Request
from judges.test_judge import answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, and a model that has learnt a little."""
    folder = tmp_path_factory.mktemp("versus")
    write_data(folder)
    done = cli("train", sft(folder, training={"steps": 25}, eval__samples=4, eval__k=[1, 4]))
    assert done.code == 0, done.err
    return folder


def found_in(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_samples_are_measured_in_training(folder: Path) -> None:
    with RunReader(folder / "sft") as reader:
        after = reader.summary["after"]
    assert after["eval_pass@1"] <= after["eval_pass@4"] <= 1
    assert after["eval_pass@1"] == pytest.approx(after["eval_samples/reward"])
    assert "eval_pass@2" not in after
    assert after["eval_samples/unique"] <= 1


def test_samples_of_a_run(folder: Path, tmp_path: Path) -> None:
    done = cli("eval", folder / "sft", "eval.samples=8", "eval.k=[2]", "eval.limit=6", "--output", tmp_path / "o.json")
    assert done.code == 0, done.err
    metrics = found_in(tmp_path / "o.json")["metrics"]
    assert metrics["samples/kl"]["low"] > 0, "it has moved away from its start"
    assert metrics["samples/kl_k1"]["value"] != metrics["samples/kl"]["value"]
    assert metrics["pass@2"]["value"] >= metrics["samples/reward"]["value"]
    assert metrics["samples/self_overlap"]["interval"] == "95 %, bootstrap"
    assert "pass@2" in done.out
    kept = sorted((folder / "sft" / "evaluations").glob("*.json"))
    assert kept, "the results are in the run"
    assert found_in(kept[-1]) == found_in(tmp_path / "o.json")
    assert str(kept[-1]) in done.out
    assert pass_at_k(8, 0, 2) == 0


def test_against_its_start_by_reward(folder: Path, tmp_path: Path) -> None:
    start = folder / "sft" / "start"
    arguments = ("eval", folder / "sft", "eval.samples=null", "eval.k=null", "eval.limit=20")
    done = cli(*arguments, "--against", start, "--output", tmp_path / "o.json")
    assert done.code == 0, done.err
    found = found_in(tmp_path / "o.json")
    alone = cli(
        "eval",
        folder / "sft",
        "eval.samples=null",
        "eval.k=null",
        "eval.limit=20",
        "--model",
        start,
        "--output",
        tmp_path / "s.json",
    )
    assert alone.code == 0, alone.err
    ours, theirs = found["answers"], found_in(tmp_path / "s.json")["answers"]
    wins = [(a["reward"] > b["reward"]) + 0.5 * (a["reward"] == b["reward"]) for a, b in zip(ours, theirs, strict=True)]
    metrics, expected = found["metrics"], proportion(sum(wins), 20)
    assert metrics["win_rate"]["value"] == expected.value
    assert (metrics["win_rate"]["low"], metrics["win_rate"]["high"]) == (expected.low, expected.high)
    assert [row["outcome"] for row in found["versus"]["rows"]] == wins
    assert [row["other"] for row in found["versus"]["rows"]] == [b["answer"] for b in theirs]
    assert metrics["won"]["value"] + metrics["tied"]["value"] + metrics["lost"]["value"] == pytest.approx(1)
    assert found["versus"]["model"] == str(start)
    assert "against: " in done.out
    assert "ties count one half" in done.out


def test_against_itself_is_a_tie(folder: Path, tmp_path: Path) -> None:
    done = cli("eval", folder / "sft", "eval.limit=5", "--against", folder / "sft", "--output", tmp_path / "o.json")
    assert done.code == 0, done.err
    metrics = found_in(tmp_path / "o.json")["metrics"]
    assert metrics["win_rate"]["value"] == 0.5
    assert metrics["tied"]["value"] == 1


def test_by_a_judge(folder: Path, tmp_path: Path) -> None:
    """The judge likes what is first in the alphabet; of +4= always the first place; of +3= it says nothing clear."""

    def script(request: Request) -> str:
        a, b = answers(request.question)
        if "+3=" in request.question:
            return "Hard to say."
        return f"Reasons.\nVerdict: {'A' if a < b or '+4=' in request.question else 'B'}"

    rows = [{"prompt": f"{a}+{b}="} for a in (2, 3) for b in range(9)]
    data = write_rows(tmp_path / "prompts.jsonl", rows)
    path = recipe(
        tmp_path / "r.yaml", model=str(folder / "sft"), algorithm="sft", offline={"path": str(folder / "sums.jsonl")},
        eval={"data": {"path": str(data)}}, sampling={"max_new_tokens": 3},
    )  # fmt: skip
    arguments = ("eval", path, "--against", folder / "sft" / "start", "--output", tmp_path / "o.json")
    with ChatServer(script) as server:
        judge = tmp_path / "judge.yaml"
        judge.write_text(yaml.safe_dump({"model": "m", "base_url": server.url, "cache": str(tmp_path / "judge.db")}))
        done = cli(*arguments, "--judge", judge)
        assert done.code == 0, done.err
        asked = len(server.requests)
        again = cli(*arguments, "--judge", judge)
        assert again.code == 0, again.err
        assert len(server.requests) == asked, "all replies are in the cache"
    found = found_in(tmp_path / "o.json")

    def outcome(prompt: str, ours: str, theirs: str) -> float | None:
        if ours == theirs or prompt.endswith("+4="):
            return 0.5
        return None if prompt.endswith("+3=") else float(ours < theirs)

    compared = found["versus"]["rows"]
    expected = [outcome(row["prompt"], row["answer"], row["other"]) for row in compared]
    assert [row["outcome"] for row in compared] == expected
    decided = [value for value in expected if value is not None]
    assert len({*expected}) > 2
    assert found["metrics"]["win_rate"]["value"] == pytest.approx(sum(decided) / len(decided))
    assert found["metrics"]["undecided"]["value"] == len(expected) - len(decided)
    assert found["metrics"]["orders_disagree"]["value"] == pytest.approx(2 / len(decided)), "of two prompts, +4="
    assert "judged by m" in done.out


def refused(*arguments: str | Path) -> str:
    done = cli(*arguments)
    assert done.code == 2, done.out
    return done.err


def test_what_is_lacking(folder: Path, tmp_path: Path) -> None:
    judge = tmp_path / "judge.yaml"
    judge.write_text("model: m\nbase_url: http://localhost:9/v1\n")
    run = folder / "sft"
    assert "name the other one with --against" in refused("eval", run, "--judge", judge)
    assert "is not a file" in refused("eval", run, "--against", run, "--judge", tmp_path / "none.yaml")
    nobody = refused("eval", run, "rewards=[]", "--against", run)
    assert "there is neither a reward nor a judge" in nobody
    judge.write_text("modle: m\n")
    assert "modle: unknown key, did you mean 'model'" in refused("eval", run, "--against", run, "--judge", judge)
    judge.write_text("just text")
    assert "holds no keys and values" in refused("eval", run, "--against", run, "--judge", judge)
    assert "does not exist" in refused("eval", run, "--against", "./nothing")
