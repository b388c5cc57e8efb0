from __future__ import annotations

import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError
from gro.runs import RolloutRecord, Run
from gro.runs.report import write_report

HOSTILE = (
    "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e{{ 7919*7907 }}&amp;\x00 \" ' --> ]]>"
)


class Page(HTMLParser):
    """The page as a browser would take it apart: its elements, their attributes, the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._quiet = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self._quiet = tag == "style"
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data


def rollout(row: int, **changes: Any) -> RolloutRecord:
    values: dict[str, Any] = {
        "prompt": f"prompt {row}",
        "prompt_ids": [1],
        "completion": f"completion {row}",
        "completion_ids": [5, 6],
        "reward": float(row),
    }
    return RolloutRecord(group=row, row=row, **values | changes)


def page_of(path: Path) -> Page:
    return Page(write_report(path).read_text())


def test_what_a_report_says(tmp_path: Path) -> None:
    with Run.open(tmp_path / "first", {"algorithm": {"name": "gro", "beta": 0.1}, "lr": 3e-4}) as run:
        for step in range(1, 41):
            run.record_rollouts(step, [rollout(i, completion=f"s{step} c{i}") for i in range(8)] if step % 20 else [])
            run.record(step, {"reward": step / 40, "loss": 1 / step, "rewards/chosen": 1.0, "num_tokens": step * 1000})
        run.record(40, {"kl": math.nan, "custom/metric": 5.0})
        run.event("warning", "entropy fell by half", 12)
        run.finish(
            formula="loss = −Σ share · w",
            before={"accuracy": 0.25, "gone": 1},
            after={"accuracy": 0.75, "name": "x"},
            samples=[{"prompt": "1+1=", "after": "2", "right": True}],
            saved_to="model",
        )
    text = write_report(run.path).read_text()
    page = Page(text)
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "object", "embed", "base", "form", "a"})
    assert "svg" in page.tags
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    for expected in (
        "gro",
        "finished",
        "loss = −Σ share · w",
        "entropy fell by half",
        "kl is nan at step 40",
        "saved to",
        "custom/metric",
        "40,000",
        "lr: 0.0003",
        "s1 c0",
        "s39 c0",
        "1+1=",
        "✓",
    ):
        assert expected in page.text, expected
    assert re.search(r"accuracy\s+0.25\s+0.75\s+\+0.5\s", page.text)
    assert re.search(r"Highest reward.*reward +7.*Lowest reward.*reward +0", page.text, re.DOTALL)
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == ["Reward", "Reward margin", "Loss"]  # KL has no finite value to draw
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text


def test_how_answers_to_the_same_prompt_change(tmp_path: Path) -> None:
    """At its first, middle and last step; what the policy did not draw is no answer of it."""
    with Run.open(tmp_path / "r", {}) as run:
        for step in (1, 2, 4, 5, 9):
            once = rollout(2, prompt=f"prompt of step {step}", finish="stop")
            read = rollout(1, prompt="read", completion=f"of a file, {step}")
            often = rollout(0, prompt="often", completion=f"drawn at {step}", finish="stop")
            run.record_rollouts(step, [often, read, once] if step < 9 else [read, often])
            run.record(step, {"reward": 0.5})
    text = write_report(run.path).read_text()
    part = Page(text[text.index("The same prompts over time") : text.index("Highest reward")]).text
    assert re.findall(r"drawn at \d", part) == ["drawn at 1", "drawn at 5", "drawn at 9"]
    assert re.findall(r"step +(\d)", part) == ["1", "5", "9"]
    assert "of a file" not in part
    assert "prompt of step" not in part
    assert "First completions" not in text  # they are among these


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    with Run.open(tmp_path / "<b>&run", {"algorithm": HOSTILE, HOSTILE: HOSTILE}) as run:
        for step in (1, 2):
            row = rollout(0, prompt=HOSTILE, completion=HOSTILE, rewards={HOSTILE: 1.0, "b": 2.0}, finish=HOSTILE)
            run.record_rollouts(step, [row, rollout(1, completion="x" * 9000)])
            run.record(step, {HOSTILE: 1.0, "reward": 0.5, f"rewards/{HOSTILE}/mean": 0.5})
        run.event("error", HOSTILE, 1, detail=HOSTILE)
        summary: dict[str, Any] = dict.fromkeys(("algorithm", "formula", HOSTILE), HOSTILE)
        run.finish(before={HOSTILE: 1}, after={HOSTILE: HOSTILE}, samples=[{HOSTILE: HOSTILE}], **summary)
    text = write_report(run.path).read_text()
    page = Page(text)
    assert page.tags.isdisjoint({"script", "img"})
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "62615533" not in text  # nobody evaluated the braces
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x00" not in text
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e").replace("\x00", "\\x00")
    assert page.text.count(shown) >= 15
    assert html.escape(shown) in text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    assert "(9000 characters)" in page.text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        assert "running" in page_of(run.path).text
    page = page_of(run.path)
    assert "interrupted" in page.text
    assert "svg" not in page.tags
    with Run.open(tmp_path / "r", {}) as run:  # its own report does not make the directory foreign
        run.record(1, {"loss": math.nan})
    assert "svg" not in page_of(run.path).tags


def test_many_alarms_are_counted(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}) as run:
        for step in range(25):
            run.event("warning", f"alarm number {step}", step)
    text = page_of(run.path).text
    alarms = text[text.index("Alarms") : text.index("Details")]
    assert [f"alarm number {n}" in alarms for n in (4, 5, 24)] == [False, True, True]
    assert "and 5 earlier ones" in alarms


def test_what_is_no_run_is_refused_and_another_place_may_be_named(tmp_path: Path) -> None:
    with pytest.raises(GroError, match="is not a run directory"):
        write_report(tmp_path)
    Run.open(tmp_path / "r", {}).close()
    assert write_report(tmp_path / "r", tmp_path / "page.html") == tmp_path / "page.html"
    assert not (tmp_path / "r" / "report.html").exists()
