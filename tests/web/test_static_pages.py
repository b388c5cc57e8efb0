"""Reports and comparisons in a real browser: nothing that a model wrote runs, nothing is fetched, all of it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gro.runs import RolloutRecord, Run
from gro.runs.compare import Comparison, write_comparison
from gro.runs.report import write_report
from web.injections import injections

INJECTIONS = injections()
PATIENCE = 60_000
"""How long a page may take, in milliseconds."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report and a comparison of two runs, with an injection in every place that text can come to."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [_run(folder / f"run{seed} <img src=x onerror=window.ran=1>", seed) for seed in (0, 1)]
    made = [write_report(runs[0], folder / "report.html", every=True)]
    compared = Comparison.read(runs, by_seed=False)
    made.append(write_comparison(compared, folder / "compare.html", compared.panels(every=True)))
    return made


def _run(path: Path, seed: int) -> Path:
    config = {"algorithm": INJECTIONS[seed], "seed": seed, **{text: f"{text}{seed}" for text in INJECTIONS}}
    with Run.open(path, config) as run:
        for step in (1, 2, 3):
            run.record_rollouts(step, [_answer(row, text, step) for row, text in enumerate(INJECTIONS)])
            run.record(step, {"reward": step / 4, "kl": step / 8, **dict.fromkeys(INJECTIONS[:8], step / 2)})
        for text in INJECTIONS:
            run.event("warning", text, 2)
        samples = [{text: text, "prompt": text} for text in INJECTIONS[:20]]
        summary: dict[str, Any] = dict.fromkeys(INJECTIONS[:20], INJECTIONS[0])
        run.finish(formula=INJECTIONS[0], before=summary, after=summary, samples=samples, facts=summary)
    return path


def _answer(row: int, text: str, step: int) -> RolloutRecord:
    common: dict[str, Any] = {"prompt_ids": [1], "completion_ids": [2], "finish": "stop", "reward": row / 8}
    return RolloutRecord(
        group=row, row=row, prompt=text, completion=f"{text}{step}", rewards={text: 1.0, "b": 2.0}, **common
    )


@pytest.mark.fault("W4")
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_page_runs_and_fetches_nothing_and_fits(
    browser: Any, pages: list[Path], which: int, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[which].as_uri(), timeout=PATIENCE)
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    page.locator("figure svg").last.scroll_into_view_if_needed(timeout=PATIENCE)
    assert page.evaluate("window.ran") is None
    assert asked == [pages[which].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("script, img, iframe, a, form, object, embed").count() == 0
    shown = page.locator("body").inner_text(timeout=PATIENCE)
    assert "onerror" in shown
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)")
    page.close()
