"""The page on rewards: its recipes are sound, its example runs, and every parameter is on it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from gro.config import check_config
from gro.rewards.functions import TrainerState, notes_of
from gro.rewards.loading import load
from gro.rewards.pool import Pool
from gro.rewards.registry import named
from gro.rewards.remote import remote
from gro.runs.plain import load_yaml

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rewards-in-detail.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RULES = {name: function for name, function in named().items() if notes_of(function).options}
"""Not the rewards that are models."""


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.mark.parametrize("name", [*RULES, "http://host/path"])
def test_every_parameter_is_on_the_page(name: str) -> None:
    function = RULES.get(name, remote)
    (table,) = re.findall(rf"^\| `{name}` \|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    told = {word for row in table.splitlines() for word in re.findall(r"`(\w+)`", row.split("|")[1])}
    parameters = inspect.signature(function).parameters.values()
    settings = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - ({"url"} if function is remote else set())
    assert told == settings
    assert settings <= {*notes_of(function).options}


@pytest.mark.parametrize("i", range(len(blocks("yaml"))))
def test_recipes_are_sound(i: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("problems.jsonl").touch()
    Path("my_rewards.py").write_text("def brief(completions, limit=200, **columns): ...\n")
    recipe: dict[str, Any] = {**load_yaml(blocks("yaml")[0]), **load_yaml(blocks("yaml")[i])}
    check_config(recipe, f"recipe {i + 1}")
    for item in recipe["rewards"]:
        if isinstance(item, dict):
            load(item["reward"], {k: v for k, v in item.items() if k not in ("reward", "weight", "clip", "time_limit")})


def test_the_function_on_the_page(tmp_path: Path) -> None:
    (example,) = blocks("python")
    (tmp_path / "mine.py").write_text(example, encoding="utf-8")
    with Pool(f"{tmp_path}/mine.py:judged", {"scale": 2.0}) as pool:
        scores = pool.score({"completions": ["ab", "", "c"]}, TrainerState()).scores
        assert pool.batch == 64
    assert (scores[0], scores[2]) == (4.0, 2.0)
    assert "ValueError: an empty completion" in str(scores[1])
    with pytest.raises(ValueError, match="scale must be above 0, not -1"):
        load(f"{tmp_path}/mine.py:judged", {"scale": -1})
