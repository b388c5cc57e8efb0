"""The page of `gro inspect` in a real browser: every path, every key, and texts that want to be code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_text import HOSTILE
from inspected_runs import records, trained, written
from serving import Served, served
from tokenizers import Tokenizer, models

from gro.runs import Run
from gro.runs.records import FACTORS, RolloutRecord, factor
from gro.web.inspect.routes import Inspecting
from web.browser import all_named, fits, strict_page, until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """The grpo run: 3 steps, 2 prompts recorded, 4 completions each."""
    inspecting = Inspecting(trained("grpo"))
    with served(inspecting.routes) as running:
        yield running
    inspecting.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with strict_page(browser) as made:
        yield made


def opened(page: Any, server: Served, view: str = "") -> Any:
    page.goto(server.address("/inspect", view))
    page.wait_for_selector("[role=listbox]")
    return page


def view(page: Any) -> dict[str, str]:
    return dict(part.split("=") for part in page.evaluate("location.hash.slice(1)").split("&"))


def press(page: Any, key: str, **expected: Any) -> None:
    """A key, and what the address says then; None: nothing."""
    page.keyboard.press(key)
    for name, value in expected.items():
        wanted = None if value is None else str(value)
        until(
            page, "([name, value]) => new URLSearchParams(location.hash.slice(1)).get(name) === value", [name, wanted]
        )
    until(page, "document.querySelector('#app').ariaBusy !== 'true'")


def longest(step: int) -> RolloutRecord:
    return max(records(trained("grpo"), step), key=lambda r: (len(r.completion_ids), -r.row))


def test_the_page_opens_on_the_last_step_without_the_token_in_its_address(page: Any, server: Served) -> None:
    opened(page, server)
    assert "token" not in page.url
    assert view(page) == {"step": "3", "row": "0", "q": "coefficient"}
    assert page.locator("#part-head").inner_text().split("\n") == ["grpo", "", "grpo · finished · 3 steps"]
    assert page.locator("#part-prompts li").count() == 2
    assert page.locator("#part-group li").count() == 4


def test_every_key(page: Any, server: Served) -> None:
    row = longest(3)
    last = len(row.completion_ids) - 1
    others = [r.row for r in records(trained("grpo"), 3) if r.group == row.group]
    opened(page, server, f"#step=3&row={others[0]}")
    press(page, "j", row=others[1])
    press(page, "k", row=others[0])
    press(page, "n" if row.group == 0 else "p", row=4 if row.group == 0 else 0)
    press(page, "p" if row.group == 0 else "n", row=others[0])
    press(page, "[", step=2)
    press(page, "]", step=3)
    opened(page, server, f"#step=3&row={row.row}")
    press(page, "ArrowRight", at=0)
    for at in range(1, last + 1):
        press(page, "ArrowRight", at=at)
        assert page.locator(".token[aria-selected=true]").get_attribute("id") == f"a-{at}"
    press(page, "ArrowRight", at=last)  # the end is the end
    press(page, "ArrowLeft", at=max(last - 1, 0))
    press(page, "Home", at=0)
    press(page, "End", at=last)
    press(page, "q", q="advantage")
    press(page, "b", beside=next(r for r in others if r != row.row))
    assert page.locator("[role=listbox]").count() == 2
    press(page, "s", side="b")
    press(page, "Home", at=0)
    assert page.locator(".token[aria-selected=true]").get_attribute("id") == "b-0"
    press(page, "s", side=None)
    for beside in [r for r in others if r != row.row][1:]:
        press(page, "b", beside=beside)
    press(page, "b", beside=None)
    press(page, "?")  # no key
    press(page, "a", act=1)
    press(page, "a", act=None)


def test_colours_and_numbers_are_those_of_the_run(page: Any, server: Served) -> None:
    row = longest(3)
    opened(page, server, f"#step=3&row={row.row}&q=logp&at=0")
    logp = row.tokens["logp"].tolist()
    heats = page.locator("#tokens-a .token").evaluate_all("all => all.map(e => e.style.getPropertyValue('--heat'))")
    most = max(map(abs, logp))
    assert heats == [f"{int(100 * abs(x) / most + 0.5)}%" for x in logp]
    assert page.locator("#tokens-a .token.below").count() == len(logp)
    shown = page.locator("#tokens-a .token").first.get_attribute("title")
    assert float(shown.split(": ")[1]) == pytest.approx(logp[0], rel=1e-3)
    known = page.locator(".known dl div", has_text="entropy").locator("dd").inner_text()
    assert float(known) == pytest.approx(float(row.tokens["entropy"][0]), rel=1e-3)
    assert page.locator("[aria-label=Legend] li").count() >= 2
    page.select_option("#quantity", "trained")
    until(page, "document.querySelector('#tokens-a .token').title.endsWith('yes')")


def test_the_parts_multiply_to_the_coefficient(page: Any, server: Served) -> None:
    row = next(r for r in records(trained("grpo"), 3) if abs(r.tokens["coefficient"][0]) > 1e-6)
    opened(page, server, f"#step=3&row={row.row}&at=0")
    page.wait_for_selector(".parts")
    cells = page.locator(".parts tbody tr").evaluate_all("all => all.map(r => [...r.cells].map(c => c.textContent))")
    assert len(cells) == 2
    total = 0.0
    for _, share, w, v, _epsilon, _u, slope, product, *_ in cells:
        assert float(share) * float(w) * float(v) * float(slope) == pytest.approx(float(product), rel=2e-3)
        total += float(product)
    assert total == pytest.approx(float(row.tokens["coefficient"][0]), rel=2e-3)
    page.select_option("#quantity", "term0.share")
    press(page, "q", q="term0.w")
    page.select_option("#quantity", "term0.clip")
    until(page, "document.querySelector('#tokens-a .token').title.includes('inside')")


def test_all_probabilities_of_actions_have_one_unit(page: Any, server: Served) -> None:
    told = {
        "ids": [4, 5, 6, 7], "words": list("abcd"), "policy": [0.99, 1.23e-4, 9.31e-5, 0.0], "reference": None,
        "sampler": None, "rank": 1, "entropy": 1.0, "whose": [], "exact": True, "taken": 4, "recorded": {},
    }  # fmt: skip
    page.route("**/actions/*", lambda route: route.fulfill(json=told))
    opened(page, server, f"#step=3&row={longest(3).row}&at=0&act=1")
    page.wait_for_selector(".actions tbody tr")
    shown = page.locator("td.policy .number").all_inner_texts()
    assert shown == ["99 %", "0.0123 %", "9.3e-3 %", "0 %"]


def test_the_top_actions_and_which_was_taken(page: Any, server: Served) -> None:
    row = longest(3)
    opened(page, server, f"#step=3&row={row.row}&at=0&act=1")
    page.wait_for_selector(".actions tbody tr")
    rows = page.locator(".actions tbody tr")
    status, told = server.get(f"/api/inspect/steps/3/rows/{row.row}/actions/0")
    assert status == 200
    assert rows.count() == len(told["ids"]) >= 50
    assert page.locator(".actions thead th").all_inner_texts() == ["#", "token", "policy", "reference", "sampler"]
    first = rows.first.locator("td.policy .number").inner_text()
    assert float(first.split()[0]) == pytest.approx(100 * told["policy"][0], rel=0.01)
    taken = page.locator(".actions tr.taken")
    assert taken.count() == 1
    assert "taken" in taken.inner_text()
    assert taken.locator("td").first.inner_text() == str(told["rank"])
    assert "Policy: checkpoints/step-2, exactly the weights of this step." in page.locator("#whose").inner_text()
    press(page, "ArrowRight", at=1)
    until(page, "document.querySelector('#actions').getAttribute('aria-busy') === 'false'")
    assert (
        page.locator(".prefix mark").inner_text().strip()
        == page.locator(".token[aria-selected=true]").inner_text().strip()
    )


@pytest.mark.parametrize(
    "address",
    [
        "#step=2&row=5&at=0&q=entropy",
        "#step=1&row=1&at=0&q=ratio&beside=2&side=b",
        "#step=3&row=0&at=0&q=kl3&beside=3&act=1",
    ],
)
def test_every_view_has_an_address_that_restores_it(page: Any, server: Served, address: str) -> None:
    opened(page, server, address)
    if "act" in address:
        page.wait_for_selector(".actions tbody tr")
    assert page.evaluate("location.hash") == address
    before = page.locator("#app").inner_text()
    page.evaluate("location.hash = '#step=2&row=0&q=old'")
    until(page, "document.querySelector('#quantity').value === 'old'")
    assert page.locator("#app").inner_text() != before
    page.go_back()
    until(page, "hash => location.hash === hash && document.querySelector('#quantity').value !== 'old'", address)
    if "act" in address:
        page.wait_for_selector(".actions tbody tr")
    until(page, "before => document.querySelector('#app').innerText === before", before)


def test_an_address_that_says_nonsense_is_put_right(page: Any, server: Served) -> None:
    opened(page, server, "#step=999&row=77&at=9999&q=nothing&beside=0&side=b")
    last = str(len(records(trained("grpo"), 3)[0].completion_ids) - 1)
    assert view(page) == {"step": "3", "row": "0", "at": last, "q": "coefficient"}
    assert page.locator("#notice").inner_text() == (
        "no completions were recorded at step 999; step 3 has no recorded completion 77; "
        "completion 0 cannot stand beside 0; this run has no quantity “nothing”"
    )
    assert page.locator("#tokens-a .token").count() > 0
    press(page, "q", q="advantage")
    assert page.locator("#notice").is_hidden()
    for wrong in ("#step=3&row=77", "#step=3&row=0&q=nothing"):
        page.evaluate("hash => { location.hash = hash; }", wrong)
        until(page, "wrong => location.hash === '#step=3&row=0&q=coefficient' && !notice.hidden", wrong)
        named = "no recorded completion 77" if "77" in wrong else "no quantity “nothing”"
        assert named in page.locator("#notice").inner_text()
        press(page, "q", q="advantage")


def test_of_a_reward_model_no_actions_are_offered(page: Any) -> None:
    inspecting = Inspecting(trained("judge"))
    with served(inspecting.routes) as server:
        opened(page, server, "#step=1&row=0&at=0&act=1")
        assert view(page) == {"step": "1", "row": "0", "at": "0", "q": "coefficient"}
        assert page.locator("#no-actions").inner_text() == (
            "A reward model gives a score to a whole answer: it has no actions."
        )
        page.keyboard.press("a")
        press(page, "ArrowRight", at=1)
        assert page.evaluate("[document.getElementById('act'), actions.childNodes.length]") == [None, 0]
        assert "act" not in view(page)
    inspecting.close()


def test_without_a_mouse(page: Any, server: Served) -> None:
    """Tab reaches every control, each has a name, and a redraw leaves the focus where it was."""
    opened(page, server, "#step=2&row=0&at=0")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        here = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        if here == "BODY":
            break
        reached.append(here)
    wanted = {
        "step-1",
        "step",
        "step1",
        "prompt-0",
        "row-0",
        "beside-1",
        "quantity",
        "tokens-a",
        "walk-on",
        "act",
    }
    assert wanted <= set(reached)
    page.focus("#step1")
    press(page, "Enter", step=3)
    assert page.evaluate("document.activeElement.id") in ("step1", "")  # the last step: there is no next
    page.focus("#beside-1")
    press(page, "Enter", beside=1)
    assert page.evaluate("document.activeElement.id") == "beside-1"
    page.focus("#step")
    press(page, "ArrowLeft", step=2)
    all_named(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(browser: Any, server: Served, width: int, scheme: str) -> None:
    with strict_page(browser, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        opened(page, server, "#step=3&row=0&at=0&beside=1&act=1&q=term0.share")
        page.wait_for_selector(".actions tbody tr")
        page.wait_for_selector(".parts")
        fits(page, width, scheme)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A run whose tokens, prompts, completions, rewards, algorithm and name are all markup."""
    run = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=alert(1)>"
    vocabulary = {text: index for index, text in enumerate(HOSTILE)}
    ids = list(range(len(HOSTILE)))
    rows = [
        RolloutRecord(
            group=index, row=index, prompt=text, prompt_ids=[index], completion=text, completion_ids=ids,
            reward=float(index), rewards={text: 1.0, "<img src=x onerror=alert(2)>": None}, finish="stop",
            tokens={"logp": -1.0, "coefficient": 0.5, **{factor(0, name): 1.0 for name in FACTORS}},
        )
        for index, text in enumerate(HOSTILE)
    ]  # fmt: skip
    written(run, [rows], {"algorithm": {"name": HOSTILE[0]}, "model": {"path": None}}, HOSTILE[:20])
    (run / "start").mkdir()
    Tokenizer(models.WordLevel(vocabulary, unk_token=HOSTILE[0])).save(str(run / "start" / "tokenizer.json"))
    inspecting = Inspecting(run)
    with served(inspecting.routes) as running:
        yield running
    inspecting.close()


@pytest.mark.fault("W4")
def test_hostile_texts_stay_texts(page: Any, hostile: Served) -> None:
    """200 of them as tokens, prompts, completions, names of rewards, terms, actions and notes of the worker."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    actions = {
        "ids": list(range(200)), "policy": [0.005] * 200, "reference": [0.005] * 200, "sampler": [0.005] * 200,
        "rank": 1, "entropy": 1.0, "whose": list(HOSTILE), "exact": True, "words": list(HOSTILE),
        "taken": 0, "recorded": {},
    }  # fmt: skip
    page.route("**/actions/*", lambda route: route.fulfill(json=actions))
    opened(page, hostile, "#step=1&row=0&at=5&act=1&q=term0.share")
    page.wait_for_selector(".actions tbody tr")
    page.wait_for_selector(".parts")
    page.click("summary:has-text('Prompt')")
    assert page.locator(".actions tbody tr").count() == page.locator("#tokens-a .token").count() == 200
    assert page.locator("#part-prompts .clip").all_text_contents() == list(HOSTILE)
    shown = page.locator("#tokens-a .token").all_text_contents()
    plain = [text for text in HOSTILE if text.isprintable()]
    assert len(plain) == 195
    assert set(plain) <= set(shown)
    assert shown[-1].startswith("⟨001B⟩[2J⟨202E⟩<script>")
    assert shown[-1].endswith("⟨2066⟩⟨200B⟩⟨0000⟩⟨FEFF⟩")
    for row in range(1, 200, 40):
        page.evaluate("row => { location.hash = `#step=1&row=${row}&at=${row}&q=logp&act=1`; }", row)
        page.wait_for_selector(f"[aria-label='Completion {row}']")
    page.evaluate(
        "location.hash = '#' + encodeURIComponent('<img src=x onerror=alert(3)>') + '&q=<script>alert(4)</script>'"
    )
    page.wait_for_timeout(300)  # for nothing to happen
    assert page.evaluate("window.hostileRan") is None
    made = page.evaluate("[...new Set([...document.querySelectorAll('body *')].map(e => e.localName))]")
    assert not set(made) & {
        "script",
        "img",
        "image",
        "iframe",
        "object",
        "embed",
        "video",
        "math",
        "form",
        "meta",
        "style",
        "marquee",
    }
    assert page.locator("svg").count() == 1  # the curve
    own = f"http://127.0.0.1:{hostile.port}/"
    assert asked
    assert all(re.match(own + r"(inspect|static/|api/inspect/)", url) for url in asked), asked


def test_a_run_that_goes_on_shows_its_new_steps(page: Any, tmp_path: Path) -> None:
    def record(step: int) -> RolloutRecord:
        return RolloutRecord(
            group=0, row=0, prompt="p", prompt_ids=[1], completion=f"c{step}", completion_ids=[1, 2], reward=1.0,
            tokens={"logp": [-1.0, -2.0]},
        )  # fmt: skip

    with Run.open(tmp_path / "run", {"algorithm": {"name": "grpo"}}) as run:
        run.record_rollouts(1, [record(1)])
        run.record(1, {"reward": 0.0})
        with served(Inspecting(run.path).routes) as server:
            opened(page, server)
            assert "being trained" in page.locator("#part-head").inner_text()
            run.record_rollouts(2, [record(2)])
            run.record(2, {"reward": 1.0})
            until(page, "document.querySelector('#step').max === '1'")
            assert view(page)["step"] == "1"  # nobody is moved
            press(page, "]", step=2)
            assert "c2" in page.locator("#part-group").inner_text()


def test_a_model_that_cannot_be_loaded_and_a_server_that_has_gone(page: Any, tmp_path: Path) -> None:
    row = RolloutRecord(
        group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1, 2], reward=1.0,
        tokens={"logp": [-1.0, -2.0]},
    )  # fmt: skip
    config = {
        "run": "x", "model": str(tmp_path / "gone"), "algorithm": "grpo", "online": {"path": "gone.jsonl"},
        "rewards": ["exact_match"], "training": {"steps": 1}, "prompts_per_step": 1, "group_size": 2,
    }  # fmt: skip
    inspecting = Inspecting(written(tmp_path / "run", [[row]], config))
    with served(inspecting.routes) as server:
        opened(page, server, "#at=0&act=1")
        page.wait_for_selector("#actions [role=alert]")
        assert "has no weights to load" in page.locator("#actions").inner_text()
        assert "were not recorded" in page.locator("#part-state").inner_text()
    inspecting.close()
    page.evaluate("location.hash = '#step=1&row=0&at=1&act=1'")
    until(page, "document.querySelector('#actions').textContent.includes('is it still running in the terminal?')")
    expected = ("400 (Bad Request)", "ERR_CONNECTION_REFUSED")
    page.faults[:] = [fault for fault in page.faults if not any(why in fault for why in expected)]


def test_a_run_without_completions_says_why(page: Any, tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", {"algorithm": {"name": "grpo"}}) as run:
        run.record(1, {"reward": 0.0})
        run.finish()
    with served(Inspecting(run.path).routes) as server:
        page.goto(server.address("/inspect"))
        until(page, "document.body.textContent.includes('training.record_groups: 0')")
