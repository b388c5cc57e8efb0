"""Reports of runs that were trained: what each kind records is drawn, or is known not to be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gro.runs import RunReader
from gro.runs.panels import Series, panels
from gro.runs.report import write_report
from jobs_on_sums import MODEL, cli, dpo, online, recipe, sft, write_data
from runs.test_report import Page

NOT_DRAWN = {
    "num_tokens",  # a straight line, nearly; the page says its last value
    "kl/k1_error",
    "duplicates/error",
    "rewards/failed",  # an alarm says so
    "eval_failed",
    "eval_stopped",
    "eval_score_mean",
    "eval_score_std",
    "ratio/first",  # an alarm looks at it
    "groups/alone",
    "completions/untrained",
}
"""In the table of all metrics, but without a curve of their own."""

REWARD = "def letters(completions, **_):\n    return [sum(map(ord, c)) % 7 / 7 for c in completions]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, a reward, and `sft` trained."""
    made = tmp_path_factory.mktemp("kinds")
    write_data(made)
    (made / "letters.py").write_text(REWARD)
    assert cli("train", sft(made, training__steps=2)).code == 0
    return made


def reward_model(folder: Path) -> Path:
    data = {"path": str(folder / "pairs.jsonl")}
    held_out = {"data": data | {"start": 80}}
    return recipe(
        folder / "judge.yaml", model=MODEL, algorithm="bradley_terry", offline=data | {"stop": 80}, eval=held_out
    )


def rewarded(folder: Path, name: str, **keys: Any) -> Path:
    common: dict[str, Any] = {"rewards": [{"reward": f"{folder / 'letters.py'}:letters"}], "training__kl_every": 1}
    return online(folder, name, **(common | keys))


MADE = {
    "sft": ({"loss", "perplexity", "entropy"}, lambda folder: None),
    "dpo": ({"margin", "logps", "held_out_accuracy"}, dpo),
    "grpo": (
        {"reward", "kl", "frontier", "clipped", "gap", "duplicates", "resampled"},
        lambda folder: rewarded(folder, "grpo", training__epochs=2, resample={"rounds": 1}),
    ),
    "ppo": (
        {"critic_loss", "critic_values", "critic_clipped", "critic_gradient", "kl_coefficient"},
        lambda folder: rewarded(folder, "ppo", algorithm={"name": "ppo", "kl_target": 0.1}, training__epochs=2),
    ),
    "trpo": (
        {"region_kl", "region_improvement", "region_backtracks", "region_residual"},
        lambda folder: rewarded(folder, "trpo", algorithm="trpo"),
    ),
    "judge": ({"calibration", "by_length", "held_out_accuracy"}, reward_model),
}


@pytest.mark.parametrize("name", MADE)
def test_what_a_run_records_is_drawn_or_known_not_to_be(folder: Path, name: str) -> None:
    expected, make = MADE[name]
    if (path := make(folder)) is not None:
        done = cli("reward-model" if name == "judge" else "train", path)
        assert done.code == 0, done.err
    with RunReader(folder / name) as run:
        series, warnings = Series.read(run, name), [event for event in run.events() if event.level != "info"]
    drawn = panels([series])
    assert expected <= {panel.key for panel in drawn}
    without = {panel.key.removeprefix("metric:") for panel in panels([series], every=True)} - {p.key for p in drawn}
    assert without <= NOT_DRAWN
    text = write_report(folder / name).read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == [panel.title for panel in drawn]
    page = Page(text)
    for metric in series.metrics:
        assert metric in page.text
    for warning in warnings:
        assert warning.message.splitlines()[0] in page.text
