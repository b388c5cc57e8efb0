"""Every recipe runs: a few steps with a tiny model, on rows of the data's form and on the data where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gro.runs import RunReader
from gro.runs.plain import load_yaml
from jobs_on_sums import cli, write_rows
from realdata import data_file

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
TINY = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "vocab_size": 400}


def gsm8k_row(i: int) -> dict[str, str]:
    answer = f"Ann has {i} and {i + 1}.\nTogether <<{i}+{i + 1}={2 * i + 1}>>{2 * i + 1} apples.\n#### {2 * i + 1}"
    return {"question": f"Ann has {i} apples and buys {i + 1}. How many does she have?", "answer": answer}


def hh_row(i: int) -> dict[str, str]:
    said = f"\n\nHuman: Tell me something about {i}.\n\nAssistant: What about it?\n\nHuman: Number {i}, is it even?"
    yes, no = f"\n\nAssistant: {i} is {'even' if i % 2 == 0 else 'odd'}.", f"\n\nAssistant: I hate {i}."
    return {"chosen": said + yes, "rejected": said + no}


def judgement_row(i: int) -> dict[str, str]:
    right, verdict = (f"{i + 1}.", f"{i}."), "B" if i % 2 else "A"
    answers = {"answer_a": right[i % 2], "answer_b": right[1 - i % 2]}
    return {"instruction": f"What is {i} + 1?", **answers, "rationale": f"It is {i + 1}.", "verdict": verdict}


ROWS = {"gsm8k.jsonl": gsm8k_row, "hh_harmless.jsonl": hh_row, "judgements.jsonl": judgement_row}


def overrides(recipe: Path, data: Path, runs: Path, held_out_from: int | None) -> list[str]:
    """A recipe cut down to seconds: a tiny model, few rows and steps.  Runs, and models of others, lie in `runs`."""
    content = load_yaml(recipe.read_text())
    changes: dict[str, Any] = {"run": str(runs / recipe.stem), "training.steps": 3, "training.eval_every": 2}
    changes |= {"prompts_per_step": 4, "optimizer.warmup_steps": 1, "eval.limit": 3}
    for key in ("offline", "online", "eval.data"):
        if key.partition(".")[0] in content:
            changes[f"{key}.path"] = str(data)
            if held_out_from is not None:
                changes |= {f"{key}.start": held_out_from} if key == "eval.data" else {f"{key}.stop": held_out_from}
            else:
                start = content["eval"]["data"]["start"]
                changes |= {f"{key}.stop": start + 8} if key == "eval.data" else {f"{key}.stop": 40}
    if isinstance(content["model"], dict):
        changes |= {f"model.create.{name}": size for name, size in TINY.items()}
    else:
        changes["model"] = str(runs / Path(content["model"]).name)
    if "online" in content:
        changes |= {"group_size": 2, "sampling.max_new_tokens": 8}
    if "critic" in content:
        changes["critic.warmup_steps"] = 1
    for i, judge in enumerate(judges_of(content)):
        changes[f"rewards.{i}.path"] = str(runs / judge)
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the recipes that others begin with."""
    return tmp_path_factory.mktemp("recipes")


def data_of(recipe: Path) -> str:
    """The name of its data file."""
    content = load_yaml(recipe.read_text())
    return Path(content.get("online", content.get("offline"))["path"]).name


def judges_of(content: dict[str, Any]) -> list[str]:
    """The runs of the reward models that it learns from; they are all of its rewards."""
    return [Path(r["path"]).name for r in content.get("rewards", ()) if isinstance(r, dict) and "path" in r]


def ran(recipe: Path, data: Path, runs: Path, held_out_from: int | None) -> RunReader:
    """The finished run of a recipe, after those of the recipes that it begins with."""
    content = load_yaml(recipe.read_text())
    for name in [*([Path(content["model"]).name] if isinstance(content["model"], str) else []), *judges_of(content)]:
        ran(recipe.with_name(f"{name}.yaml"), data, runs, held_out_from).close()
    if not (runs / recipe.stem).exists():
        arguments = overrides(recipe, data, runs, held_out_from)
        checked = cli("check", recipe, *arguments)
        assert checked.code == 0, checked.err
        done = cli("train", recipe, *arguments)
        assert done.code == 0, done.err
        assert len(done.steps) == 3
    return RunReader(runs / recipe.stem)


def is_sound(reader: RunReader) -> None:
    assert reader.status == "finished"
    metrics = reader.metrics()
    assert all(math.isfinite(v) for name in ("loss", "grad_norm") for v in metrics[name][1])
    evaluated = [name for name in metrics if name.startswith("eval_")]
    assert evaluated
    assert all(metrics[name][0].tolist() == [0, 2, 3] for name in evaluated)


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe: Path, runs: Path) -> None:
    name = data_of(recipe)
    data = runs / name
    if not data.exists():
        write_rows(data, (ROWS[name](i) for i in range(24)))
    with ran(recipe, data, runs, 16) as reader:
        is_sound(reader)
        evaluated = list(reader.metrics())
    kinds = {
        "gsm8k-sft": "eval_loss",
        "hh-sft": "eval_loss",
        "judge-sft": "eval_loss",
        "hh-dpo": "eval_accuracy",
        "hh-kto": "eval_accuracy",
        "hh-reward-model": "eval_accuracy",
    }
    assert kinds.get(recipe.stem, "eval_reward") in evaluated


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the real data."""
    return tmp_path_factory.mktemp("real")


@pytest.mark.data
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_on_its_data(recipe: Path, real_runs: Path) -> None:
    """With the recipe's own ranges but for their ends: held-out rows are where the recipe has them."""
    with ran(recipe, data_file(data_of(recipe)), real_runs, None) as reader:
        is_sound(reader)
