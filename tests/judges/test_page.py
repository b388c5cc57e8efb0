"""The page on judges: every key is on it with its default, and what it shows is sound."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gro.judges import JudgeSettings
from gro.runs.plain import load_yaml

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_key_is_on_the_page() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    assert list(table) == [f.name for f in fields(JudgeSettings)]
    defaults = JudgeSettings(model="m")
    for key, told in table.items():
        if told.startswith("`"):
            value = getattr(defaults, key)
            assert load_yaml(told.strip("`")) == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_sound(text: str) -> None:
    values = load_yaml(text)
    for item in values.get("rewards", [values]):
        JudgeSettings.parse({key: value for key, value in item.items() if key != "reward"})
