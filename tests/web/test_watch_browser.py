"""The page of `gro watch` in a real browser: live curves, every control and key, and texts that want to be code."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Served
from watched_runs import config, made, rewards, sample, soon, watched

from gro.runs import Run
from web.browser import LONG, all_named, box, fits, strict_page, until
from web.injections import injections

pytestmark = pytest.mark.timeout(600)
GONE = "ERR_(CONNECTION|EMPTY|INCOMPLETE)"
"""What the browser says where a page outlives its server, as at the end of some tests."""
STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of GRPO and a run of RLOO, with alarms and samples."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        with Run.open(folder / f"grpo-{seed}", config(seed=seed)) as run:
            for step in range(1, STEPS + 1):
                completions = [sample(0, i, "2+2=", f"{seed}.{step}.{i}", i / 2) for i in range(2)]
                run.record_rollouts(step, [*completions, sample(1, 2, f"only at {step}", "x", 0.0)])
                run.record(step, numbers(seed, step))
            if seed == 1:
                run.event("warning", "entropy falls", step=5)
            run.finish()
    made(folder / "rloo", [numbers(9, step) for step in range(1, STEPS + 1)], algorithm="rloo")
    return folder


def numbers(seed: int, step: int) -> dict[str, float]:
    """Metrics that differ from run to run."""
    zigzag = (-1) ** step * (1 + seed)
    found = {"reward": step + zigzag, "kl": step / 10 + seed, "loss": 1 / step, "odd/one": float(seed)}
    return found | ({"num_tokens": 1000.0 * step**2 * (1 + seed)} if seed < 9 else {})


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with watched(folder) as (running, _):
        yield running


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with strict_page(browser, GONE) as made:
        yield made


def opened(page: Any, server: Served, view: str = "") -> Any:
    page.goto(server.address("/watch", view))
    settled(page)
    return page


def settled(page: Any) -> None:
    """What was asked for is drawn."""
    until(page, "document.querySelector('#panels')?.getAttribute('aria-busy') === 'false'")


def curves(page: Any, key: str = "reward", kind: str = "curve") -> dict[str, list[tuple[float, float]]]:
    """The points of the lines of a panel, by label, in pixels."""
    found = page.evaluate(
        """([key, kind]) => [...document.querySelectorAll(`[id="panel-${key}"] .line`)].map(
        line => [line.dataset.label, line.querySelector('.' + kind)?.getAttribute('d') ?? ''])""",
        [key, kind],
    )
    return {
        label: [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)] for label, path in found
    }


def titles(page: Any) -> list[str]:
    return page.locator(".panel .title").all_inner_texts()


def told(page: Any, key: str = "reward") -> dict[str, str]:
    """The legend of a panel: label and value."""
    rows = page.evaluate(
        """key => [...document.querySelectorAll(`[id="panel-${key}"] .key li`)].map(
        row => [row.querySelector('.name').innerText, row.querySelector('.value').innerText])""",
        key,
    )
    return dict(rows)


def view(page: Any) -> str:
    return page.evaluate("location.hash")


def says(page: Any, where: str, text: str) -> None:
    """Waits until an element's text begins so."""
    until(page, "([where, text]) => document.querySelector(where)?.textContent.startsWith(text)", [where, text])


def counts(page: Any, what: str, number: int) -> None:
    """Waits until there are so many of something."""
    until(page, "([what, number]) => document.querySelectorAll(what).length === number", [what, number])


def test_what_the_page_shows_first(page: Any, server: Served) -> None:
    opened(page, server)
    assert "token" not in page.url
    says(page, "#state", "live")
    assert page.locator(".runs .name").all_inner_texts() == ["grpo-0", "grpo-1", "grpo-2", "rloo"]
    facts = page.locator(".facts").all_inner_texts()
    assert facts[0] == "grpo · finished · step 12 of 3 · reward 13"
    assert facts[1].endswith("· 1 alarm")
    assert titles(page) == ["Reward", "Loss", "KL to the reference", "Reward against KL"]
    assert list(curves(page)) == ["grpo (3 seeds)", "rloo"]
    assert "entropy falls" in page.locator(".alarms").inner_text()
    rows = page.locator("#part-settings tbody tr").all_inner_texts()
    assert [row.split("\t") for row in rows] == [
        ["algorithm.name", "grpo", "grpo", "grpo", "rloo"], ["seed", "0", "1", "2", "0"],
    ]  # fmt: skip


def test_lines_and_bands_are_where_the_numbers_say(page: Any, server: Served) -> None:
    """The picture is measured: pixels are proportional to steps and values, and a band is as wide as its interval."""
    opened(page, server, "#smooth=0")
    mean = [(step, step + (-1) ** step * 2) for step in range(1, STEPS + 1)]  # of (1 + seed) the mean is 2
    drawn = curves(page)["grpo (3 seeds)"]
    assert len(drawn) == STEPS
    x_scale = (drawn[-1][0] - drawn[0][0]) / (STEPS - 1)
    y_scale = (drawn[1][1] - drawn[0][1]) / (mean[1][1] - mean[0][1])
    assert x_scale > 5
    assert y_scale < 0  # up is more
    for (x, y), (step, value) in zip(drawn, mean, strict=True):
        assert x == pytest.approx(drawn[0][0] + (step - 1) * x_scale, abs=0.3)
        assert y == pytest.approx(drawn[0][1] + (value - mean[0][1]) * y_scale, abs=0.3)
    band = curves(page, kind="band")["grpo (3 seeds)"]
    half = 4.3027 * 1.0 / math.sqrt(3)  # of 1, 2, 3 the deviation is 1
    assert len(band) == 2 * STEPS
    assert band[0][1] - drawn[0][1] == pytest.approx(half * y_scale, abs=0.3)
    assert band[-1][1] - drawn[0][1] == pytest.approx(-half * y_scale, abs=0.3)
    assert curves(page, kind="band")["rloo"] == []


def test_what_was_not_finite_is_a_gap(page: Any, tmp_path: Path) -> None:
    rewards(tmp_path / "run", 1.0, math.nan, 3.0, 4.0, math.inf, 6.0)
    with watched(tmp_path) as (server, _):
        opened(page, server, "#smooth=0")
        path = page.locator("#panel-reward .curve").get_attribute("d")
        assert re.sub(r"[\d. ]+", "", path) == "MhMLMh"  # a point, two with a line, a point
        drawn = curves(page)["reward"]
        x = [point[0] for point in drawn]
        assert [round((here - x[0]) / (x[-1] - x[0]) * 5) for here in x] == [0, 2, 3, 5]
        page.focus("[id=plot-reward]")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert page.locator("#panel-reward .last").inner_text() == "step 3"


def test_a_single_value_is_a_dot(page: Any, tmp_path: Path) -> None:
    made(tmp_path / "run", [{"reward": 1.0, "entropy": 2.0}, {"reward": 3.0}])
    with watched(tmp_path) as (server, _):
        opened(page, server)
        assert box(page, "#panel-entropy .line circle")["width"] > 4
        assert page.locator("#panel-reward .line circle").count() == 0


def test_of_very_many_runs_only_the_first_are_drawn_until_others_are_ticked(page: Any, tmp_path: Path) -> None:
    for number in range(42):
        rewards(tmp_path / f"run-{number:02}", float(number))
    with watched(tmp_path) as (server, _):
        opened(page, server, "#seeds=0")
        counts(page, "#panel-reward .line", 40)
        dashes = page.evaluate(
            "[...document.querySelectorAll('#panel-reward .curve')].map(e => "
            "e.parentElement.classList[1] + e.getAttribute('stroke-dasharray'))"
        )
        assert len(set(dashes)) == 24  # six colours with four kinds of line
        page.click("#run-41")
        counts(page, "#panel-reward .line", 41)
        assert view(page) == "#on=run-41&seeds=0"


def test_the_smoothing_handle(page: Any, server: Served) -> None:
    opened(page, server, "#smooth=0")
    rough = curves(page)["rloo"]
    assert curves(page, kind="raw")["rloo"] == []
    page.focus("#smooth")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    until(page, "location.hash.includes('smooth=0.3')")
    settled(page)
    smooth = curves(page)["rloo"]
    assert curves(page, kind="raw")["rloo"]  # what was recorded stays behind it

    def roughness(points: list[tuple[float, float]]) -> float:
        return sum(abs(a[1] - 2 * b[1] + c[1]) for a, b, c in zip(points, points[1:], points[2:], strict=False))

    assert roughness(smooth) < 0.5 * roughness(rough)
    assert page.locator("#smooth").get_attribute("aria-valuetext") == "30 % of the curve"


def test_runs_are_switched_with_keys_and_clicks_and_keep_their_colours(page: Any, server: Served) -> None:
    opened(page, server)
    colour = (
        "[...document.querySelectorAll('#panel-reward .line')].map(line => [line.dataset.label, line.classList[1]])"
    )
    assert dict(page.evaluate(colour)) == {"grpo (3 seeds)": "c0", "rloo": "c1"}
    page.keyboard.press("2")
    counts(page, "[aria-checked=false][id^=run-]", 1)
    until(page, "document.querySelector('#panel-reward .line').dataset.label === 'grpo (2 seeds)'")
    page.keyboard.press("1")
    page.keyboard.press("3")
    counts(page, "#panel-reward .line", 1)
    settled(page)
    assert view(page) == "#off=grpo-1&off=grpo-0&off=grpo-2"
    page.click("#run-2")
    counts(page, "#panel-reward .line", 2)
    assert dict(page.evaluate(colour)) == {"grpo-2": "c0", "rloo": "c1"}
    page.click("#no-runs")
    says(page, "#none", "No run is chosen.")
    page.click("#all-runs")
    counts(page, "#panel-reward .line", 2)
    assert view(page) == ""
    page.click("#seeds")
    counts(page, "#panel-reward .line", 4)
    assert dict(page.evaluate(colour)) == {"grpo-0": "c0", "grpo-1": "c1", "grpo-2": "c2", "rloo": "c3"}


def test_the_crosshair_says_the_numbers_by_keyboard_and_by_mouse(page: Any, server: Served) -> None:
    opened(page, server, "#seeds=0&smooth=0")
    page.focus("[id=plot-reward]")
    for key, step in (("Home", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 12), ("PageUp", 2)):
        page.keyboard.press(key)
        assert page.locator("#panel-reward .last").inner_text() == f"step {step}"
        wanted = {f"grpo-{seed}": numbers(seed, step)["reward"] for seed in range(3)}
        wanted["rloo"] = numbers(9, step)["reward"]
        assert {label: float(value) for label, value in told(page).items()} == wanted
        said = page.locator("#said").text_content()
        assert said == f"step {step}: " + "; ".join(f"{label} {value:g}" for label, value in wanted.items())
    assert page.locator("#said").get_attribute("aria-live") == "polite"
    page.keyboard.press("Escape")
    assert page.locator("#panel-reward .last").inner_text() == "reward"
    drawn = curves(page, "loss")["rloo"]
    plot = box(page, "[id=plot-loss]")
    page.mouse.move(plot["x"] + drawn[6][0] + 2, plot["y"] + 60)
    assert page.locator("#panel-loss .last").inner_text() == "step 7"
    assert set(told(page, "loss").values()) == {"0.1429"}
    page.mouse.move(1, 1)
    assert page.locator("#panel-loss .last").inner_text() == "loss"


def test_a_panel_is_enlarged_and_small_again(page: Any, server: Served) -> None:
    opened(page, server)
    small = box(page, "#panel-kl")["width"]
    page.focus("[id=plot-kl]")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#panel-kl').classList.contains('big')")
    assert view(page) == "#big=kl"
    assert box(page, "#panel-kl")["width"] > 2 * small
    assert page.evaluate("document.activeElement.id") == "plot-kl"
    until(page, "Number(document.querySelector('#panel-kl svg').getAttribute('width')) > 700")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('.panel.big')")
    page.click("[id=plot-loss]")
    until(page, "document.querySelector('#panel-loss').classList.contains('big')")
    page.click("[id=title-loss]")
    until(page, "!document.querySelector('.panel.big')")
    page.go_back()
    until(page, "document.querySelector('#panel-loss').classList.contains('big')")


def test_the_enlarged_panel_can_be_had_as_a_file(page: Any, server: Served) -> None:
    opened(page, server, "#big=reward&smooth=0&seeds=0&off=rloo")
    assert page.locator(".files a").all_inner_texts() == ["SVG", "PNG", "PDF"]
    page.focus(".files a")
    with page.expect_download() as coming:
        page.keyboard.press("Enter")
    assert coming.value.suggested_filename == "reward.svg"
    texts = [element.text for element in ET.parse(coming.value.path()).iter()]
    assert {"grpo-0", "grpo-1", "grpo-2", "Reward", "step"} <= set(texts)
    assert "rloo" not in texts
    assert page.evaluate("document.activeElement.textContent") == "SVG"
    page.click("[id=title-reward]")
    counts(page, ".files a", 0)


def test_the_filter_and_all_metrics(page: Any, server: Served) -> None:
    opened(page, server)
    page.keyboard.press("/")
    page.keyboard.type("rew")
    counts(page, ".panel", 2)
    assert titles(page) == ["Reward", "Reward against KL"]
    page.keyboard.press("Escape")
    page.keyboard.press("1")  # typing is over: a key is a key again
    until(page, "location.hash === '#off=grpo-0&find=rew'")
    page.fill("#find", "odd")
    says(page, "#none", "No panel has that in its name.")
    page.click("#every")
    counts(page, ".panel", 1)
    assert titles(page) == ["odd/one"]
    assert float(told(page, "metric:odd/one")["rloo"]) == 9


def test_alarms_are_marked_where_they_happened(page: Any, server: Served) -> None:
    opened(page, server, "#smooth=0")
    drawn = curves(page)["grpo (3 seeds)"]
    marks = page.locator("#panel-reward .mark")
    assert marks.count() == 1
    assert float(marks.first.get_attribute("x1")) == pytest.approx(drawn[4][0], abs=0.1)  # step 5
    assert page.locator("#panel-frontier .mark").count() == 0
    page.keyboard.press("2")
    counts(page, ".mark", 0)


def test_curves_over_tokens(page: Any, server: Served) -> None:
    """By keyboard, in the address, with marks at their places; steps far apart in tokens are far apart in pixels."""
    opened(page, server, "#smooth=0")
    steps, values = curves(page)["grpo (3 seeds)"], told(page)
    page.focus("#x")
    page.keyboard.press("ArrowDown")
    until(page, "document.querySelector('#panel-reward .curve')?.closest('.panel').textContent.includes('tokens')")
    settled(page)
    assert "x=tokens" in view(page)
    says(page, "#none", "Not drawn, since they do not record their tokens: rloo.")
    drawn = curves(page)
    assert list(drawn) == ["grpo (3 seeds)"]
    line = drawn["grpo (3 seeds)"]
    scale = (line[-1][0] - line[0][0]) / (STEPS**2 - 1)
    for step, (x, _) in enumerate(line, 1):  # at 2000 step², the mean of the seeds
        assert x == pytest.approx(line[0][0] + (step**2 - 1) * scale, abs=0.3)
    assert len(line) == len(steps)
    assert told(page)["grpo (3 seeds)"] == values["grpo (3 seeds)"]
    counts(page, "#panel-reward .mark", 1)  # of the second seed at step 5, 50,000 tokens: where the mean is, too
    mark = page.locator("#panel-reward .mark").get_attribute("x1")
    assert float(mark) == pytest.approx(line[4][0], abs=0.3)
    assert page.locator("#panel-frontier .line").count() == 3  # over its own axis, with all runs
    page.focus("[id=plot-reward]")
    page.keyboard.press("End")
    assert page.locator("#panel-reward .last").inner_text() == "tokens 288k"
    page.reload()
    settled(page)
    assert page.locator("#x").input_value() == "tokens"
    assert curves(page) == drawn
    page.evaluate("location.hash = '#x=miles&smooth=0'")
    counts(page, "#panel-reward .line", 2)
    assert page.locator("#x").input_value() == "step"
    page.select_option("#x", "hours")
    says(page, "#none", "Not drawn, since they do not record their hours: grpo-0, grpo-1, grpo-2, rloo.")
    assert titles(page) == ["Reward against KL"]


def test_samples_over_time(page: Any, server: Served) -> None:
    opened(page, server)
    page.wait_for_selector(".samples li")

    def shown() -> tuple[str, list[str], str]:
        texts = page.locator(".samples pre").all_inner_texts()
        return (
            page.locator("#completions > pre").inner_text(),
            texts,
            page.locator("output[for=sample-step]").inner_text(),
        )

    assert shown() == ("2+2=", ["0.12.0", "0.12.1"], "step 12")
    assert [text.split(" · ")[0] for text in page.locator(".samples small").all_inner_texts()] == [
        "reward 0",
        "reward 0.5",
    ]
    page.keyboard.press("[")
    says(page, ".samples pre", "0.11.0")
    page.keyboard.press("[")
    says(page, ".samples pre", "0.10.0")
    page.keyboard.press("]")
    says(page, ".samples pre", "0.11.0")
    page.focus("#sample-step")
    page.keyboard.press("Home")
    says(page, ".samples pre", "0.1.0")
    assert page.evaluate("document.activeElement.id") == "sample-step"
    assert page.locator("#sample-before").is_disabled()
    page.select_option("#sample-run", "grpo-2")
    says(page, ".samples pre", "2.12.0")
    assert "gro inspect" in page.locator("#part-samples").inner_text()
    page.select_option("#sample-prompt", label="only at 7 — step 7")
    says(page, "#completions > pre", "only at 7")
    assert page.locator("#sample-step").is_disabled()
    page.select_option("#sample-prompt", "any")
    until(page, "document.querySelectorAll('#completions > pre').length === 2")
    page.keyboard.press("Escape")
    page.focus("#sample-before")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#completions > pre')[1]?.textContent === 'only at 11'")
    assert page.locator(".samples pre").all_inner_texts() == ["2.11.0", "2.11.1", "x"]
    page.select_option("#sample-run", "rloo")
    says(page, "#part-samples [role=status]", "no completions are recorded yet")


def test_the_prompts_of_a_run_are_never_those_of_another(page: Any, server: Served) -> None:
    """Where a run cannot be read for a moment, that is said, and the next look asks again."""
    opened(page, server)
    page.wait_for_selector(".samples li")
    page.route("**/api/watch/prompts*", lambda route: route.fulfill(status=400, json={"error": "cannot be read"}))
    page.select_option("#sample-run", "grpo-2")
    says(page, "#part-samples [role=status]", "cannot be read")
    assert not page.locator("#sample-prompt").is_visible()
    page.unroute("**/api/watch/prompts*")
    page.click("#every")
    says(page, ".samples pre", "2.12.0")
    page.faults[:] = [fault for fault in page.faults if "status of 400" not in fault]


def test_a_view_has_an_address_that_restores_it(page: Any, server: Served) -> None:
    opened(page, server)
    page.click("#run-3")
    page.click("#seeds")
    page.focus("#smooth")
    page.keyboard.press("Home")
    page.fill("#find", "r")
    page.click("[id=title-reward]")
    page.keyboard.press("[")
    says(page, ".samples pre", "0.11.0")
    settled(page)
    address, before = view(page), (page.locator("#app").inner_text(), curves(page))
    for part in ("off=rloo", "seeds=0", "smooth=0", "find=r", "big=reward", "prompt=", "step=11"):
        assert part in address
    page.reload()
    settled(page)
    says(page, ".samples pre", "0.11.0")
    says(page, "#state", "live")
    until(page, "Number(document.querySelector('#panel-reward svg').getAttribute('width')) > 700")
    assert view(page) == address
    assert (page.locator("#app").inner_text(), curves(page)) == before
    page.evaluate("location.hash = '#off=nobody&smooth=7&big=nothing&run=nobody&prompt=x&step=99&find='")
    counts(page, "#panel-reward .line", 2)
    assert page.locator("#smooth").input_value() == "5"


def test_without_a_mouse(page: Any, server: Served) -> None:
    """Tab reaches every control and panel, each has a name, and news leave the focus where it was."""
    opened(page, server)
    page.wait_for_selector(".samples li")
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        here = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        if here == "BODY":
            break
        reached.append(here)
    wanted = ["all-runs", "run-0", "run-3", "find", "smooth", "x", "seeds", "every", "title-reward",
              "plot-reward", "title-frontier", "plot-frontier", "sample-run", "sample-prompt", "sample-before",
              "sample-step"]  # fmt: skip
    assert [name for name in reached if name in wanted] == wanted
    page.focus("#run-0")
    page.keyboard.press("Space")
    until(page, "document.querySelector('#run-0').getAttribute('aria-checked') === 'false'")
    settled(page)
    assert page.evaluate("document.activeElement.id") == "run-0"
    all_named(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(browser: Any, server: Served, width: int, scheme: str) -> None:
    with strict_page(browser, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        opened(page, server, "#every=1&big=reward")
        page.wait_for_selector(".samples li")
        fits(page, width, scheme)
        assert page.evaluate(
            "[...document.querySelectorAll('svg')].every(e => e.getBoundingClientRect().right <= innerWidth)"
        )


POINTS = "n => (document.querySelector('#panel-reward .curve')?.getAttribute('d') ?? '').split('L').length === n"


def test_curves_grow_while_a_run_goes_on(page: Any, tmp_path: Path) -> None:
    """Nobody loads the page again; what was in focus stays; a new run and a new alarm come by themselves."""
    with watched(tmp_path) as (server, _):
        page.goto(server.address("/watch"))
        says(page, "#none", "No run yet in ")
        with Run.open(tmp_path / "first", config(training={"steps": 9})) as run:
            until(page, "document.querySelector('#run-0') !== null")
            page.focus("#run-0")
            for step in range(1, 6):
                run.record_rollouts(step, [sample(0, 0, "p", f"c{step}", 1.0)])
                run.record(step, {"reward": step / 10})
                until(page, POINTS, step)
            until(page, "document.querySelector('.facts').textContent.includes('step 5 of 9')")
            assert "running" in page.locator(".facts").inner_text()
            assert page.evaluate("document.activeElement.id") == "run-0"
            run.event("error", "the reward fell", step=4)
            says(page, "#said", "error in first at step 4: the reward fell")
            counts(page, "#panel-reward .mark.error", 1)
            assert "the reward fell" in page.locator(".alarms").inner_text()
        until(page, "document.querySelector('.facts').textContent.includes('interrupted')")
        rewards(tmp_path / "second", 0.5, 0.25, algorithm="rloo")
        counts(page, "#panel-reward .line", 2)
        assert page.locator(".runs .name").all_inner_texts() == ["first", "second"]


def test_a_panel_that_says_the_same_is_not_drawn_again(page: Any, tmp_path: Path) -> None:
    with watched(tmp_path) as (server, _), Run.open(tmp_path / "run", config()) as run:
        for step in (1, 2):
            run.record(step, {"reward": float(step), "entropy": 2.0})
        opened(page, server)
        until(page, POINTS, 2)
        page.evaluate("for (const svg of document.querySelectorAll('.drawing svg')) svg.setAttribute('data-old', '')")
        run.record(3, {"reward": 3.0})
        until(page, POINTS, 3)
        old = "[...document.querySelectorAll('.drawing svg[data-old]')].map(svg => svg.closest('.panel').id)"
        assert page.evaluate(old) == ["panel-entropy"]


def test_a_hidden_page_asks_for_nothing(page: Any, tmp_path: Path) -> None:
    rewards(tmp_path / "run", 1.0, 2.0)
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with watched(tmp_path) as (server, watching):
        opened(page, server)
        says(page, "#state", "live")
        page.evaluate(hide, True)
        soon(lambda: not watching.stream._pages and watching.stream._poller is None)
        rewards(tmp_path / "another", 3.0, algorithm="rloo")
        page.evaluate(hide, False)
        counts(page, "#panel-reward .line", 2)


def test_alarms_come_without_a_stream_too(browser: Any, tmp_path: Path) -> None:
    with (
        watched(tmp_path) as (server, _),
        Run.open(tmp_path / "run", config()) as run,
        strict_page(browser, f"{GONE}|503") as page,
    ):
        run.record(1, {"reward": 1.0})
        page.route("**/stream", lambda route: route.fulfill(status=503, json={"error": "32 pages are open"}))
        opened(page, server)
        says(page, "#state", "too many pages are open")
        run.event("warning", "the reward fell", step=1)
        says(page, ".alarms p", "the reward fell")


def test_settings_of_a_run_that_is_read_later(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first look may not come to all runs; one that it has not come to has no settings yet."""
    for seed in range(2):
        rewards(tmp_path / f"run-{seed}", 1.0, seed=seed)
    monkeypatch.setattr("gro.web.watch.board._PATIENCE", -1.0)
    with watched(tmp_path) as (server, _):
        opened(page, server)
        counts(page, ".facts .unread", 2)
        says(page, "#part-settings p", "in nothing that is recorded")
        monkeypatch.undo()
        says(page, "#part-settings tbody th", "seed")


def test_a_server_that_has_gone_and_one_that_came_again(browser: Any, tmp_path: Path) -> None:
    rewards(tmp_path / "run", 1.0, 2.0)
    page = browser.new_page()
    page.set_default_timeout(1000 * LONG)
    with watched(tmp_path) as (server, _):
        opened(page, server)
        says(page, "#state", "live")
        page.route("**/stream", lambda route: route.fulfill(status=503, json={"error": "32 pages are open"}))
        page.reload()
        says(page, "#state", "too many pages are open")
        page.unroute("**/stream")
        says(page, "#state", "live")
    says(page, "#state", "the server does not answer")
    assert len(curves(page)) == 1  # what was drawn stays
    refuse = {"status": 403, "json": {"error": "open the address that the terminal shows: it has the token"}}
    page.route("**/api/**", lambda route: route.fulfill(**refuse))
    says(page, "#state", "the server was started again: open the address")
    page.close()


DRAWN = """main a header h1 h2 p div section button span small ul ol li kbd svg line path g text circle input label
output select option pre code details summary dl dt dd table thead tbody tr th td"""
"""Every element that the page makes."""


@pytest.mark.fault("W4")
def test_texts_that_want_to_be_code_stay_texts(page: Any, tmp_path: Path) -> None:
    """As names of runs, metrics, algorithms and settings, in alarms, prompts and completions."""
    texts = injections()
    assert len(texts) >= 200
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for number in range(2):
        name = ["<img src=x onerror=window.ran=1>", '"><svg onload=window.ran=1>'][number]
        settings: Any = dict.fromkeys(texts, number)
        with Run.open(tmp_path / name, {"algorithm": {"name": texts[number]}, "set": settings}) as run:
            for step in (1, 2):
                run.record_rollouts(step, [sample(i, i, text, text, 0.0) for i, text in enumerate(texts)])
                run.record(step, {text: float(step + number) for text in texts} | {"reward": step + number})
            for text in texts:
                run.event("warning", text, step=1)
    with watched(tmp_path) as (server, _):
        opened(page, server, "#every=1")
        page.wait_for_selector(".samples li")
        until(page, "document.querySelectorAll('.panel').length > 200")
        assert page.locator(".runs .name").all_inner_texts() == sorted(p.name for p in tmp_path.iterdir())
        shown = set(page.locator("#part-settings tbody th").all_text_contents())
        plain = [text for text in texts if text.isprintable()]
        assert len(plain) >= 150
        assert {f"set.{text}" for text in plain if "." not in text} <= shown
        assert set(plain) & set(page.locator(".panel .title").all_text_contents())
        assert set(plain) & set(page.locator(".alarms p").all_text_contents())
        for value in page.evaluate("[...document.querySelectorAll('#sample-prompt option')].map(e => e.value)")[::20]:
            page.select_option("#sample-prompt", value)
            until(page, "value => new URLSearchParams(location.hash.slice(1)).get('prompt') === value", value)
        image = "<img src=x onerror=window.ran=1>"
        told = {"big": image, "find": "<script>", "run": image}
        page.evaluate("told => { location.hash = '#' + new URLSearchParams(told); }", told)
        until(page, "document.querySelector('#find').value === '<script>'")
        settled(page)
        page.keyboard.press("1")
        until(page, "document.querySelector('#part-settings pre') !== null")
        assert page.evaluate("window.ran") is None
        made = set(page.evaluate("[...new Set([...document.querySelectorAll('body *')].map(e => e.localName))]"))
        assert made <= set(DRAWN.split())
        own = f"http://127.0.0.1:{server.port}/"
        assert all(re.match(own + r"(watch|static/|api/watch/)", url) for url in asked), json.dumps(asked)
