"""What a person does with `gro inspect`, by keys alone, on runs of several kinds; weights that go meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspected_runs import records, trained
from serving import Served, served

from gro.runs.records import RolloutRecord
from gro.web.inspect.routes import Inspecting
from gro.web.inspect.stored import quantities
from web.browser import strict_page, until

pytestmark = pytest.mark.timeout(900)
TOLD = "name => new URLSearchParams(location.hash.slice(1)).get(name)"
"""What the address says."""


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with strict_page(browser) as made:
        yield made


def opened(page: Any, server: Served, view: str = "") -> None:
    page.goto(server.address("/inspect", view))
    page.wait_for_selector("[role=listbox]")


def told(page: Any, name: str) -> str | None:
    return page.evaluate(TOLD, name)


def press(page: Any, key: str, **expected: Any) -> None:
    """A key; returns when the address says what is expected, None: nothing, and the page shows it."""
    page.keyboard.press(key)
    for name, value in expected.items():
        until(page, f"([name, value]) => ({TOLD})(name) === value", [name, None if value is None else str(value)])
    page.wait_for_selector("#app[aria-busy=false]")


def shown(page: Any) -> list[str]:
    """What the tokens of the first completion say of the chosen quantity."""
    titles = page.locator("#tokens-a .token").evaluate_all("all => all.map(token => token.title)")
    return [title.rpartition(": ")[2] for title in titles]


def as_shown(values: np.ndarray, scale: str) -> list[float | str]:
    if scale == "flag":
        return ["yes" if value else "no" for value in values]
    names = {-1: "-1 (below)", 0: "0 (inside)", 1: "1 (above)", 2: "2 (past dual)"}
    return [names[int(value)] for value in values] if scale == "state" else list(values)


def all_quantities(page: Any, record: RolloutRecord) -> set[str]:
    """Goes round all quantities by `q`, and compares every number on the page with the run's."""
    known, seen = quantities(record), set()
    while (name := str(told(page, "q"))) not in seen:
        seen.add(name)
        scale = "flag" if name == "trained" else "state" if name.endswith(".clip") else "number"
        for text, value in zip(shown(page), as_shown(known[name], scale), strict=True):
            assert text == value if isinstance(value, str) else float(text) == pytest.approx(value, rel=1e-3), name
        page.keyboard.press("q")
        until(page, f"name => ({TOLD})('q') !== name", name)
        page.wait_for_selector("#app[aria-busy=false]")
    return seen


def test_every_path_by_keys_alone(page: Any) -> None:
    """Step, prompt, completion; every quantity as a heat map; state by state, with the actions; two side by side."""
    inspecting = Inspecting(trained("ppo"))
    with served(inspecting.routes) as server:
        opened(page, server)
        last = int(told(page, "step") or 0)
        press(page, "[", step=last - 1)
        rows = records(trained("ppo"), last - 1)
        second = next(r for r in rows if r.group == 1)
        press(page, "n", row=second.row)
        press(page, "j", row=second.row + 1)
        record = next(r for r in rows if r.row == second.row + 1)
        terms = {f"term0.{part}" for part in ("share", "w", "v", "epsilon", "u", "slope", "c", "clip")}
        wanted = {"coefficient", "advantage", "value", "return", "reward", "logp", "old", "ref", "sampler", "entropy"}
        wanted |= {"ratio", "gap", "kl1", "kl3", "trained"} | terms
        assert all_quantities(page, record) == wanted
        press(page, "a", act=1, at=0)
        for at in range(len(record.completion_ids)):
            page.wait_for_selector(".actions tbody tr")
            page.wait_for_selector("#actions[aria-busy=false]")
            assert (
                page.locator("#state-title").inner_text().startswith(f"State {at + 1} of {len(record.completion_ids)}")
            )
            assert page.locator(".actions tbody tr").count() >= 50
            if at + 1 < len(record.completion_ids):
                press(page, "ArrowRight", at=at + 1)
        press(page, "b", beside=second.row)
        assert page.locator("[role=listbox]").count() == 2
        assert page.locator("#part-group li").count() == sum(r.group == 1 for r in rows), "with their group"
        address = page.evaluate("location.hash")
        page.goto("about:blank")
        opened(page, server, address)
        assert page.evaluate("location.hash") == address
        assert page.locator("[role=listbox]").count() == 2
    inspecting.close()


@pytest.mark.parametrize(
    ("name", "updates"), [("twice", " · recorded is the first of a step's 4 updates"), ("kto", "")]
)
def test_which_update_the_numbers_are_of(page: Any, name: str, updates: str) -> None:
    with served(Inspecting(trained(name)).routes) as server:
        opened(page, server, "#step=2&at=0")
        assert page.locator("#part-head p").inner_text().endswith(f" steps{updates}")
        assert page.locator(".parts tbody tr").count() == (1 if name == "kto" else 2)


@pytest.mark.slow
def test_weights_that_go_while_the_page_is_open(page: Any, tmp_path: Path) -> None:
    """A state is removed: of the next token the page says from where its numbers are then, and how far that is."""
    run = tmp_path / "lora"
    shutil.copytree(trained("lora"), run)
    record = max(records(run, 4), key=lambda r: len(r.completion_ids))
    inspecting = Inspecting(run)
    with served(inspecting.routes) as server:
        opened(page, server, f"#step=4&row={record.row}&at=0&act=1")
        page.wait_for_selector(".actions tbody tr")
        assert page.locator("#whose").inner_text().startswith("Policy: state/step-3, exactly the weights of this step.")
        shutil.rmtree(run / "state" / "step-3")
        press(page, "ArrowRight", at=1)
        page.wait_for_selector("#whose:has-text('Policy: state/step-4, the nearest: 1 step later.')")
        press(page, "ArrowLeft", at=0)
        page.wait_for_selector("#whose:has-text('exactly the weights of this step.')")
    inspecting.close()
