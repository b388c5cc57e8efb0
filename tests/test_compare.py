"""`gro compare-objectives` on pairs of a file and on the rollouts of a run."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gro.errors import GroError
from gro.jobs.compare import parse_algorithms
from gro.runs import RunReader
from jobs_on_sums import cli, online, sft, write_data, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, a model, and a run with rollouts of it whose rewards vary."""
    folder = tmp_path_factory.mktemp("compare")
    write_data(folder)
    (folder / "length.py").write_text(
        "def length(completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    done = cli("train", sft(folder, training={"steps": 2}))
    assert done.code == 0, done.err
    done = cli("train", online(folder, algorithm="rloo", rewards=[f"{folder / 'length.py'}:length"]))
    assert done.code == 0, done.err
    return folder


def test_pairs_of_a_file(folder: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "o.json", tmp_path / "p.svg"
    done = cli(
        "compare-objectives", folder / "sft", "--data", folder / "pairs.jsonl", "--limit", "3",
        "--algorithms", "dpo,gpo:loss=logistic,simpo,sft", "--group", "2", "--output", output, "--picture", picture,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(output.read_text())
    assert found["algorithms"] == ["dpo", "gpo:loss=logistic", "simpo"]
    assert "there are none" in found["refused"]["sft"]
    assert "left out: sft: it learns from demonstrations" in done.out
    cosines = found["cosines"]["gradients"]
    assert cosines[0][1] == pytest.approx(1, abs=1e-5)
    assert 0 < cosines[0][2] < 0.9999
    assert "dpo pushes in the same direction as gpo:loss=logistic" in done.out
    assert "completion 0 of group 2" in done.out
    assert "completion 0 of group 1" not in done.out
    assert len(found["completions"]) == 6
    for row in found["completions"]:
        for label in found["algorithms"]:
            assert len(row["coefficients"][label]) == len(row["tokens"])
            (term,) = row["terms"][label]
            product = [
                a * b * c * d for a, b, c, d in zip(*(term[k] for k in ("share", "w", "v", "slope")), strict=True)
            ]
            assert product == pytest.approx(row["coefficients"][label], rel=1e-5)
            assert (row["coefficients"][label][0] > 0) == (row["reward"] > 0)
    texts = ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")
    assert "gpo:loss=logistic" in {"".join(t.itertext()).strip() for t in texts}, "text stays text"


def test_rollouts_of_a_run(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.json"
    arguments = ("--run", folder / "online", "--step", "1", "--algorithms", "rloo,dr_grpo,dpo")
    done = cli("compare-objectives", folder / "sft", *arguments, "--output", output)
    assert done.code == 0, done.err
    found = json.loads(output.read_text())
    assert found["cosines"]["gradients"][0][1] == pytest.approx(1, abs=1e-5)
    with RunReader(folder / "online") as reader:
        records = reader.rollouts(1)
    assert len(found["completions"]) == len(records) > 0
    for row, record in zip(found["completions"], records, strict=True):
        assert row["reward"] == record.reward
        assert row["coefficients"]["rloo"] == pytest.approx(record.tokens["coefficient"].tolist(), abs=1e-4), (
            "the first update of the run, in which all its groups were recorded"
        )


def refused(*arguments: str | Path) -> str:
    done = cli("compare-objectives", *arguments)
    assert done.code == 2, done.out
    return done.err


def test_what_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    model, pairs, run = folder / "sft", folder / "pairs.jsonl", folder / "online"
    assert "give the batch with --data or with --run" in refused(model)
    assert "not both" in refused(model, "--data", pairs, "--run", run)
    assert "is not a file" in refused(model, "--data", tmp_path / "none.jsonl")
    assert "--kind is one of" in refused(model, "--data", pairs, "--kind", "pears")
    assert "--step is one of a run's steps" in refused(model, "--data", pairs, "--step", "1")
    assert "has no rollouts of step 9; it has those of 2 steps" in refused(model, "--run", run, "--step", "9")
    assert "--picture: the folder" in refused(model, "--data", pairs, "--picture", tmp_path / "no" / "p.svg")
    assert "did you mean 'dpo'" in refused(model, "--data", pairs, "--algorithms", "dpoo")
    nobody = refused(model, "--data", pairs, "--limit", "1", "--algorithms", "sft")
    assert "none of the algorithms can learn from 2 completions of 1 prompts" in nobody
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "1+1="}])
    assert "prompts without completions" in refused(model, "--data", prompts)
    questions = write_rows(tmp_path / "questions.jsonl", [{"question": "1+1=", "answer": "2"}])
    said = refused(model, "--data", questions)
    assert "found the columns 'question', 'answer'" in said
    assert "Call them so in the file" in said
    few = refused(model, "--data", pairs, "--limit", "1", "--algorithms", "dpo", "--group", "4")
    assert "--group: the batch has groups 0 to 0; found 4" in few


def test_algorithms_with_parameters(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from gro.algorithms import build\ndef my(beta: float = 0.1):\n    return build('dpo', beta=beta)\n"
    )
    found = parse_algorithms(f"rloo, dpo:beta=0.3,label_smoothing=0.1,ipo,{mine}:my,{mine}:my:beta=0.7")
    assert list(found) == ["rloo", "dpo:beta=0.3,label_smoothing=0.1", "ipo", f"{mine}:my", f"{mine}:my:beta=0.7"]
    betas = [found[label].terms[0].weight.beta for label in list(found)[1:] if "ipo" not in label]  # type: ignore[union-attr]
    assert betas == [0.3, 0.1, 0.7]
    with pytest.raises(GroError, match="names none"):
        parse_algorithms(" , ")
    with pytest.raises(GroError, match="parameters follow a name and a colon"):
        parse_algorithms("beta=0.3")
    with pytest.raises(GroError, match="not valid YAML"):
        parse_algorithms("dpo:beta=[")
