"""Training a judge is sft with a recipe, and what it becomes is asked as it was taught."""

from __future__ import annotations

from pathlib import Path

import yaml

from gro.config import check_config
from gro.data.encode import load_dataset
from gro.judges import Judge, JudgeSettings, Template, Verdicts
from gro.judges.reward import open_judge
from gro.runs.plain import load_yaml
from jobs_on_sums import CREATE, cli, write_rows
from judges.test_judge import case
from test_recipes import judgement_row
from tiny import tiny_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"


def test_it_is_asked_as_it_was_taught(tmp_path: Path) -> None:
    """The recipe's prompts are those of the template, and its completions end in a verdict."""
    rows = [judgement_row(i) for i in range(6)]
    data = write_rows(tmp_path / "judgements.jsonl", rows)
    recipe = load_yaml((RECIPES / "judge-sft.yaml").read_text())
    recipe["offline"] |= {"path": str(data), "stop": 6}
    recipe["eval"]["data"]["path"] = str(data)
    config = check_config(recipe, "judge-sft")
    template = Template.read(str(RECIPES / "judge-pairs.jinja"))
    decode = tiny_tokenizer().decode
    for row, group in zip(rows, load_dataset(config.offline[0].data, tiny_tokenizer()), strict=True):
        answers = {"answer_a": row["answer_a"], "answer_b": row["answer_b"]}
        assert decode(list(group.prompt.ids)) == template.render(row["instruction"], answers, row)
        reply = str(decode(list(group.completions[0].ids), skip_special_tokens=True))
        assert Verdicts.pairs()(reply) == (1.0 if row["verdict"] == "A" else 0.0)
        assert row["rationale"] in reply


def test_a_trained_judge_judges(tmp_path: Path) -> None:
    """It knows one comparison by heart, in both orders."""
    a_then_b = {"instruction": "Which?", "answer_a": "good", "answer_b": "bad", "rationale": "So.", "verdict": "A"}
    b_then_a = {**a_then_b, "answer_a": "bad", "answer_b": "good", "verdict": "B"}
    data = write_rows(tmp_path / "judgements.jsonl", [a_then_b, b_then_a] * 4)
    recipe = load_yaml((RECIPES / "judge-sft.yaml").read_text())
    recipe |= {"run": str(tmp_path / "judge"), "eval": None, "prompts_per_step": 8}
    recipe["model"] = {"create": {**CREATE, "hidden_size": 64, "layers": 2, "max_positions": 128}, "device": "cpu"}
    recipe["training"] = {"steps": 120}
    recipe["optimizer"] = {"learning_rate": 5e-3, "warmup_steps": 10}
    recipe["offline"] |= {"path": str(data), "stop": 8}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(recipe))
    done = cli("train", tmp_path / "judge.yaml")
    assert done.code == 0, done.err
    settings = JudgeSettings(
        model=str(tmp_path / "judge" / "model"),
        template=str(RECIPES / "judge-pairs.jinja"),
        chat=False,
        max_new_tokens=16,
        device="cpu",
    )
    with open_judge(settings) as judge:
        assert isinstance(judge, Judge)
        found = judge.compare([case("good", "bad"), case("bad", "good")])
    assert [(c.value, c.agreed) for c in found] == [(1, True), (0, True)], [r.text for c in found for r in c.replies]
