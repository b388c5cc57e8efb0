"""The page of `gro label` in a real browser: every key and button, several people, and text that would be a script."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gro.labels.items import Item
from gro.labels.store import Store
from web.browser import LONG, box, strict_page, until
from web.injections import RUN, injections
from web.labelling import say, site, stored

pytestmark = pytest.mark.timeout(900)
_EXPECTED = "status of (409|507)|ERR_FAILED"
"""What the browser says of requests that the test makes fail."""


@contextmanager
def opened(browser: Any, store: Store, name: str = "anna", width: int = 1280, **settings: Any) -> Iterator[Any]:
    """The page with its first item; whatever the browser complains about fails the test."""
    size = {"width": width, "height": 800}
    with site(store, name) as address, strict_page(browser, _EXPECTED, viewport=size, **settings) as page:
        page.goto(address)
        page.wait_for_selector(".completion, #finished, #name")
        yield page


def answers(store: Store) -> list[Any]:
    """Of the labels that stand, in order."""
    return [json.loads(a) for (a,) in store.read("SELECT answer FROM labels WHERE withdrawn IS NULL ORDER BY id")]


def press(page: Any, store: Store, *keys: str, made: int | None = None) -> None:
    """Presses keys, then waits until so many labels were made, and the page shows what follows."""
    for key in keys:
        page.keyboard.press(key)
    if made is not None:
        settled(page, store, made)


def settled(page: Any, store: Store, made: int) -> None:
    """Waits until so many labels were made, and the page shows what follows."""
    last = time.monotonic() + LONG
    while store.read("SELECT count(*) FROM labels") != [(made,)] and time.monotonic() < last:
        page.wait_for_timeout(20)
    assert store.read("SELECT count(*) FROM labels") == [(made,)]
    until(page, "document.getElementById('app').getAttribute('aria-busy') === 'false'")


def test_pairs_with_keys_alone(browser, tmp_path):
    store = stored(tmp_path, n=5)
    with opened(browser, store) as page:
        left = page.locator(".completion .text").first.inner_text()
        press(page, store, "ArrowLeft", made=1)
        press(page, store, "ArrowRight", made=2)
        press(page, store, "ArrowDown", made=3)
        press(page, store, "t", made=4)
        assert answers(store) == [{"choice": 0}, {"choice": 1}, {"choice": "tie"}, {"choice": "tie"}]
        shown, item = store.read("SELECT shown, item FROM labels WHERE id = 1")[0]
        completions, hashes = store.read("SELECT completions, completion_shas FROM items WHERE id = ?", (item,))[0]
        assert json.loads(completions)[json.loads(hashes).index(json.loads(shown)[0])] == left
        assert page.locator("#count").inner_text() == "4 / 5"
        press(page, store, "s", made=5)
        page.wait_for_selector("#finished")
        assert "Nothing is left for you" in page.locator("#finished").inner_text()
        page.keyboard.press("u")
        page.wait_for_selector(".completion")
        page.keyboard.press("u")
        until(page, "document.getElementById('count').textContent === '3 / 5'")
        press(page, store, "ArrowLeft", made=6)
        assert answers(store)[3:] == [{"choice": 0}]


def test_a_rationale_and_the_windows_with_keys_alone(browser, tmp_path):
    store, began = stored(tmp_path, n=2), time.monotonic()
    with opened(browser, store) as page:
        press(page, store, "r")
        page.keyboard.type("because s and t are letters here")
        press(page, store, "Escape", "?")
        assert "the left one is better" in page.locator("dialog#keys").inner_text()
        press(page, store, "ArrowLeft", "Escape")  # under the window nothing is labelled
        page.wait_for_selector("dialog", state="detached")
        press(page, store, "p")
        assert page.locator("#plain").get_attribute("aria-pressed") == "true"
        assert page.locator("#rationale").input_value() == "because s and t are letters here"
        press(page, store, "p", "ArrowRight", made=1)
        press(page, store, "a")
        assert "anna" in page.locator("dialog#agreed").inner_text()
        press(page, store, "Enter")  # its button has the focus
        page.wait_for_selector("dialog", state="detached")
        assert page.locator("#rationale").input_value() == ""
    rationale, seconds, choice = store.read("SELECT rationale, seconds, answer FROM labels")[0]
    assert (rationale, choice) == ("because s and t are letters here", '{"choice": 1}')
    assert 0 < seconds <= time.monotonic() - began


def test_time_counts_only_while_the_page_is_looked_at(browser, tmp_path):
    """The item comes while the page is in another tab, as those of a run do."""
    store = stored(tmp_path, n=2)
    clock = """window.time = 1000; performance.now = () => window.time;
        Object.defineProperty(document, "hidden", { value: true, configurable: true });"""
    turn = """hidden => { Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange")); }"""
    with site(store) as address, strict_page(browser) as page:
        page.add_init_script(clock)
        page.goto(address)
        page.wait_for_selector(".completion")
        for seconds, hidden in ((100, False), (3, True), (1000, False), (4, None)):
            page.evaluate("seconds => { window.time += 1000 * seconds; }", seconds)
            if hidden is not None:
                page.evaluate(turn, hidden)
        press(page, store, "ArrowLeft", made=1)
    assert store.read("SELECT seconds FROM labels") == [(7.0,)]


def test_an_undo_gives_the_reason_back_to_who_wrote_it(browser, tmp_path):
    store = stored(tmp_path, n=2)
    with opened(browser, store) as page:
        press(page, store, "r")
        page.keyboard.type("because")
        press(page, store, "Escape", "ArrowLeft", made=1)
        assert page.locator("#rationale").input_value() == ""
        press(page, store, "u")
        until(page, "document.getElementById('rationale')?.value === 'because'")
        press(page, store, "ArrowRight", made=2)
        press(page, store, "u")
        until(page, "document.getElementById('rationale')?.value === 'because'")
        page.click("#who")
        page.fill("#name", "ben")
        page.keyboard.press("Enter")
        page.wait_for_selector(".completion")
        assert page.locator("#rationale").input_value() == ""
    assert store.read("SELECT answer, rationale FROM labels WHERE id = 2") == [('{"choice": 1}', "because")]


def test_an_undo_gives_the_answer_back_to_be_corrected(browser, tmp_path):
    badges = "[...document.querySelectorAll('.badge')].map((b) => b.textContent).join()"
    given = [
        ("ranking", ["3", "t", "1", "2"], "rank 1,rank 3,rank 1", ["3", "3"], "rank 1,rank 2,rank 3"),
        ("score5", ["2", "5", "4"], "2,5,4", ["ArrowRight", "3"], "2,3,4"),
    ]
    for kind, said, shown, corrected, then in given:
        (tmp_path / kind).mkdir()
        store = stored(tmp_path / kind, kind, n=3, k=3)
        with opened(browser, store) as page:
            press(page, store, *said, "Enter", made=1)
            assert "rank" not in page.evaluate(badges)
            press(page, store, "u")
            until(page, f"{badges} === '{shown}'")
            press(page, store, *corrected)
            assert page.evaluate(badges) == then
            press(page, store, "Enter", made=2)
            assert page.evaluate(f"{badges} === '–,–,–'")
            press(page, store, "s", made=3)
            press(page, store, "u")
            until(page, "document.getElementById('count').textContent === '1 / 3' && !app.ariaBusy.includes('true')")
            assert page.evaluate(f"{badges} === '–,–,–'")  # of what was skipped nothing was said
    first, second = ({"ranks": [1, 2, 3]}, {"scores": [2, 3, 4]})
    assert answers(Store(tmp_path / "ranking" / "labels.db", "ranking")) == [first]
    assert answers(Store(tmp_path / "score5" / "labels.db", "score5")) == [second]


def test_pairs_with_buttons_alone_on_a_narrow_touch_screen(browser, tmp_path):
    store = stored(tmp_path, n=4)
    with opened(browser, store, width=400, has_touch=True, color_scheme="dark") as page:
        for i, name in enumerate(("left", "right", "tie", "skip")):
            page.locator(f"#{name}").tap()
            settled(page, store, i + 1)
        page.get_by_text("Undo my last").tap()
        page.wait_for_selector(".completion")
    assert answers(store) == [{"choice": 0}, {"choice": 1}, {"choice": "tie"}]


def test_best_of_k(browser, tmp_path):
    store = stored(tmp_path, "best", n=2, k=4)
    with opened(browser, store) as page:
        press(page, store, "5", "0")  # there are four
        press(page, store, "3", made=1)
        page.get_by_text("This is the best").nth(1).click()
        settled(page, store, 2)
    assert answers(store) == [{"choice": 2}, {"choice": 1}]


def test_ranking_with_keys_buttons_and_by_dragging(browser, tmp_path):
    store = stored(tmp_path, "ranking", n=4, k=3)
    with opened(browser, store) as page:
        press(page, store, "2", "Enter")  # one has a rank: nothing is sent
        press(page, store, "3", "t", "1", "Enter", made=1)
        press(page, store, "1", "2", "Backspace", "3", "1", "2", "1", "Enter", made=2)
        for place in (2, 0, 1):
            page.locator(".completion button").nth(place).click()
        page.locator("#send").click()
        settled(page, store, 3)
        cards = page.locator(".completion")
        cards.nth(2).drag_to(cards.nth(0), target_position={"x": 20, "y": 20})
        badges = "[...document.querySelectorAll('.badge')].map((b) => b.textContent).join()"
        until(page, f"{badges} === 'rank 2,rank 3,rank 1'")
        cards.nth(1).drag_to(cards.nth(2), target_position={"x": 20, "y": 20})
        press(page, store, "Enter", made=4)
    assert answers(store) == [{"ranks": r} for r in ([2, 1, 2], [3, 2, 1], [2, 3, 1], [3, 1, 2])]


def test_scores(browser, tmp_path):
    store = stored(tmp_path, "score5", n=2, k=2)
    with opened(browser, store) as page:
        press(page, store, "6", "0", "4", "Enter", "5", "ArrowLeft", "Backspace", "2", "Enter", made=1)
        page.locator(".scores button").nth(0).click()
        page.locator(".scores button").nth(9).click()
        page.locator("#send").click()
        settled(page, store, 2)
    assert answers(store) == [{"scores": [2, 5]}, {"scores": [1, 5]}]
    (tmp_path / "ten").mkdir()
    store = stored(tmp_path / "ten", "score10", n=1, k=3)
    with opened(browser, store) as page:
        press(page, store, "0", "1", "9", "ArrowUp", "7", "Enter", made=1)
    assert answers(store) == [{"scores": [10, 7, 9]}]


CONTROLS = """[...document.querySelectorAll("button, textarea, input, [tabindex='0']")].filter((e) => !e.disabled)"""


@pytest.mark.parametrize("kind", ["pairs", "best", "ranking", "score5"])
def test_without_a_mouse(browser, tmp_path, kind):
    """Tab reaches every control, each shows that it has the focus and has a name, and an answer leaves it there."""
    store = stored(tmp_path, kind, n=2, k=2 if kind == "pairs" else 3)
    with opened(browser, store) as page:
        wanted, reached = page.evaluate(f"{CONTROLS}.length"), set()
        for _ in range(wanted):
            page.keyboard.press("Tab")
            place, outline, shown, name = page.evaluate(f"""(() => {{
                const e = document.activeElement, box = e.getBoundingClientRect(), style = getComputedStyle(e);
                return [{CONTROLS}.indexOf(e), style.outlineStyle + parseInt(style.outlineWidth),
                    box.bottom > 0 && box.top < innerHeight,
                    e.ariaLabel || e.textContent.trim()]; }})()""")
            reached.add(place)
            assert (outline, shown, bool(name)) == ("solid3", True, True), name
        assert reached == set(range(wanted))
        page.focus("#skip")
        press(page, store, "Enter", made=1)
        assert page.evaluate("document.activeElement.id") == "skip"
        press(page, store, "p")
        page.focus("#plain")
        press(page, store, "Enter")
        assert page.evaluate("document.activeElement.id") == "plain"
        assert page.locator("#plain").get_attribute("aria-pressed") == "false"


def test_the_marked_one_is_in_sight(browser, tmp_path):
    store = Store(tmp_path / "labels.db", "score5")
    store.add([Item("p", [f"{i}\n\n" + "line\n\n" * 6 for i in range(5)])])
    with opened(browser, store) as page:
        for i in range(5):
            current = box(page, ".completion.current")
            assert current["y"] >= 0
            assert current["y"] + current["height"] <= box(page, ".bar")["y"]
            assert page.locator(".completion").nth(i).get_attribute("class") == "card completion current"
            page.keyboard.press("3")
        page.wait_for_selector("#send:enabled")


@pytest.mark.fault("W1", "W2")
def test_two_tabs_and_two_clicks_are_one_label(browser, tmp_path):
    store = stored(tmp_path, n=2)
    with opened(browser, store) as page:
        other = page.context.new_page()
        other.goto(page.url)
        other.wait_for_selector(".completion")
        page.locator("#left").dblclick()
        settled(page, store, 1)
        assert page.locator("#count").inner_text() == "1 / 2"
        other.keyboard.press("ArrowRight")
        until(other, "document.getElementById('notice')?.textContent.includes('already labelled by anna')")
        until(other, "document.getElementById('count').textContent === '1 / 2'")
    assert answers(store) == [{"choice": 0}]


@pytest.mark.fault("W2")
def test_a_second_click_and_a_held_key_do_not_answer_what_came_up_meanwhile(browser, tmp_path):
    store = stored(tmp_path, n=4)
    with opened(browser, store) as page:
        left = box(page, "#left")
        there = left["x"] + left["width"] / 2, left["y"] + left["height"] / 2
        page.mouse.click(*there)
        settled(page, store, 1)
        page.mouse.down(click_count=2)  # the next item is there already
        page.mouse.up(click_count=2)
        page.keyboard.down("ArrowRight")
        settled(page, store, 2)
        for _ in range(3):
            page.keyboard.down("ArrowRight")  # down again without having been up: what a held key sends
        assert page.evaluate("document.getElementById('app').ariaBusy") == "false"
        assert store.read("SELECT count(*) FROM labels") == [(2,)]
        page.keyboard.up("ArrowRight")
        press(page, store, "ArrowRight", made=3)
    assert answers(store) == [{"choice": 0}, {"choice": 1}, {"choice": 1}]


@pytest.mark.fault("W2")
def test_an_answer_that_got_lost_is_asked_for_again(browser, tmp_path):
    """The request arrives and its answer does not; then it does not arrive at all."""
    store, seen = stored(tmp_path, n=1), []
    with opened(browser, store) as page:

        def lose(route: Any) -> None:
            seen.append(route.request.post_data_json["key"])
            if len(seen) == 1:
                route.fetch()
            if len(seen) < 3:
                route.abort()
            else:
                route.continue_()

        page.route("**/api/label/save", lose)
        page.reload()  # of a page that is there already, the first request may still go its old way
        page.wait_for_selector(".completion")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#finished")
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert answers(store) == [{"choice": 0}]


@pytest.mark.fault("W3")
def test_a_full_disk_is_said_and_the_item_stays(browser, tmp_path):
    store = stored(tmp_path, n=3)
    with opened(browser, store, width=400) as page:
        page.evaluate("document.getElementById('rationale').value = 'x'.repeat(20000)")
        store.read(f"PRAGMA max_page_count = {store.read('PRAGMA page_count')[0][0]}")
        shown = page.locator(".completions").inner_text()
        page.keyboard.press("ArrowLeft")
        until(page, "document.getElementById('notice')?.textContent.includes('not saved')")
        assert page.locator(".completions").inner_text() == shown
        assert answers(store) == []
        store.read("PRAGMA max_page_count = 1000000")
        press(page, store, "ArrowLeft", made=1)


def test_the_page_asks_who_labels(browser, tmp_path):
    store = stored(tmp_path, n=2, per_item=2)
    with opened(browser, store, name="") as page:
        page.keyboard.press("Enter")
        page.keyboard.type("Ben  <b>")
        page.keyboard.press("Enter")
        page.wait_for_selector(".completion")
        press(page, store, "ArrowLeft", made=1)
        page.reload()
        page.wait_for_selector(".completion")  # it is remembered
        page.locator("#who").click()
        page.locator("#name").fill("cleo")
        page.keyboard.press("Enter")
        page.wait_for_selector(".completion")
        press(page, store, "ArrowLeft", made=2)
        press(page, store, "a")
        assert "1 question has answers of two or more" in page.locator("dialog").inner_text()
    assert store.read("SELECT annotator FROM labels") == [("Ben <b>",), ("cleo",)]


@pytest.mark.parametrize("key", ["Escape", "Enter"])
def test_who_keeps_their_name_keeps_what_they_have_begun(browser, tmp_path, key):
    store = stored(tmp_path, "score5", n=2, k=2)
    with opened(browser, store) as page:
        press(page, store, "4")
        page.fill("#rationale", "because")
        shown = page.locator(".completions").inner_text()
        page.click("#who")
        page.wait_for_selector("#name")
        press(page, store, key)
        page.wait_for_selector(".completion")
        assert page.evaluate("document.activeElement.id") == "who"
        assert page.locator(".completions").inner_text() == shown
        press(page, store, "2", "Enter")  # what has the focus is the button with the name
        page.wait_for_selector("#name")
        press(page, store, "Escape")
        page.click("#send")
        settled(page, store, 1)
        press(page, store, "s", made=2)
        page.click("#who")
        press(page, store, key)
        page.wait_for_selector("#finished")
    assert answers(store)[0] == {"scores": [4, 2]}
    assert store.read("SELECT rationale FROM labels WHERE id = 1") == [("because",)]


RICH = """# Title

Some *emphasis*, **weight**, `a < b`, ~~gone~~ and 5 * 3 * 2, snake_case_name, $5 and $6.

- one
- two
  1. deep

> said

| a | b |
|---|---|
| 1 | $x^2_i$ |

```py
if a < b: print("<b>")
```

$$\\frac{1}{\\sqrt{n}} \\sum_{i=1}^{n} \\alpha_i$$

So $$ a = \\frac{1}{2} $$ here, \\[b\\] there, and $$open.

\\(\\macro{x}\\) [words](https://example.org/a_(b)) \\*plain\\* \u202e."""


def test_markdown_and_maths(browser, tmp_path):
    store = Store(tmp_path / "labels.db")
    store.add([Item("p", [RICH, "other"])])
    with opened(browser, store) as page:
        text = page.locator(".text", has_text="Title")
        count = {tag: text.locator(tag).count() for tag in ("h3", "em", "strong", "s", "li", "ol", "blockquote", "td")}
        assert count == {"h3": 1, "em": 1, "strong": 1, "s": 1, "li": 3, "ol": 1, "blockquote": 1, "td": 2}
        assert text.locator("pre").inner_text() == 'if a < b: print("<b>")'
        assert text.locator("math").count() == 4
        within = text.locator("p math[display=block]")
        assert within.evaluate_all("all => all.map(e => e.textContent)") == ["a=12", "b"]
        assert text.locator("math msubsup").evaluate("e => [...e.children].map(c => c.textContent)") == ["x", "i", "2"]
        assert text.locator("math mfrac msqrt").count() == 1
        around = text.locator("p", has_text="$$open")
        assert around.evaluate("e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('|')") == (
            "So | here, | there, and $$open."
        )
        assert text.locator("code.tex").inner_text() == "\\macro{x}"
        said = text.inner_text()
        for part in ("5 * 3 * 2, snake_case_name, $5 and $6.", "words (https://example.org/a_(b))", "*plain* U+202E."):
            assert part in said
        assert text.locator("a").count() == 0
        page.keyboard.press("p")
        assert page.locator(".plain", has_text="Title").inner_text() == RICH.replace("\u202e", "U+202E")


FORMULAS = r"""$x \in \mathbb{R}$

$\mathcal{L} = \mathbb E_{p}[\mathbb{1}]$

$\mathrm{KL}(P)$

$50\% \text{ of } \$18$

$1 \text{ if } x$

$\mathbb{x}$"""


def test_what_a_formula_says_is_not_lost(browser, tmp_path):
    """Letters of other alphabets are others, and a space between words stays one."""
    store = Store(tmp_path / "labels.db")
    store.add([Item("p", [FORMULAS, "other"])])
    with opened(browser, store) as page:
        set_ = page.locator("math").evaluate_all("all => all.map(e => e.textContent)")
        assert set_ == ["x∈ℝ", "ℒ=𝔼p[𝟙]", "KL(P)", "50%\u00a0of\u00a0$18", "1\u00a0if\u00a0x"]
        assert page.locator("math [mathvariant=normal]").all_text_contents() == ["K", "L"]
        assert page.locator("code.tex").inner_text() == r"\mathbb{x}"


def test_the_table_of_people_breaks_names_and_not_its_heads(browser, tmp_path):
    store = stored(tmp_path, n=1, per_item=2)
    say(store, "b" * 60, {"choice": 0})
    with opened(browser, store, name="a" * 60, width=400) as page:
        press(page, store, "ArrowLeft", "a", made=2)
        page.wait_for_selector("dialog#agreed th")
        heads = page.locator("dialog th").evaluate_all("all => all.map(e => e.textContent)")
        assert heads[-4:] == ["name", "labels", "skipped", "median seconds"]
        height = page.locator("dialog th").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
        assert max(height) < 40  # one line
        assert page.locator("dialog").evaluate("e => e.scrollWidth <= e.clientWidth")


@pytest.mark.fault("W4")
def test_no_text_of_a_model_is_run(browser, tmp_path):
    """G15: two hundred texts, each as a completion in both ways of showing it, as a prompt, a name and a rationale."""
    texts = injections()
    assert len(texts) >= 200
    control = browser.new_page()  # without our page around it the browser does run such texts
    control.set_content("<img src=x onerror=window.ran=1>")
    until(control, "window.ran === 1")
    control.close()
    store = Store(tmp_path / "labels.db", "score5")
    for i in range(0, len(texts), 9):
        store.add([Item(texts[i], texts[i : i + 9])])
    watch = "addEventListener('securitypolicyviolation', (e) => { window.violated = e.violatedDirective; });"
    seen: list[str] = []
    with opened(browser, store) as page:
        page.on("dialog", lambda d: d.dismiss())
        page.context.add_init_script(watch)
        page.reload()
        for _ in range(0, len(texts), 9):
            page.wait_for_selector(".completion")
            for _ in range(2):
                state = page.evaluate("""() => [window.ran, window.violated, document.scripts.length, location.pathname,
                    [...document.querySelectorAll(".text *")].filter((e) => e.matches(
                        "script, iframe, img, svg, a, object, embed, form, input, style, link, meta, video, base") ||
                        [...e.attributes].some((a) => a.name.startsWith("on") || /script:/i.test(a.value)
                            && a.name !== "aria-label")).length]""")
                assert state == [None, None, 1, "/", 0], page.locator(".completions").inner_text()
                page.keyboard.press("p")
            for link in page.locator(".inert").all()[:3]:
                link.click()
            seen += page.evaluate("[...document.querySelectorAll('.completion .text')].map((e) => e.textContent)")
            before = store.read("SELECT count(*) FROM labels")[0][0]
            page.keyboard.press("s")
            settled(page, store, before + 1)
        assert page.evaluate("window.ran") is None
    assert len(seen) == len(texts)
    assert sum(RUN in text for text in seen) > 190  # they were there, as text


@pytest.mark.fault("W4")
def test_names_and_rationales_are_text_too(browser, tmp_path):
    store = stored(tmp_path, n=1)
    bad = f"<img src=x onerror={RUN}>"
    with opened(browser, store, name=bad) as page:
        page.locator("#rationale").fill(bad)
        page.keyboard.press("Escape")
        press(page, store, "ArrowLeft", made=1)
        press(page, store, "a")
        assert bad in page.locator("dialog").inner_text()
        assert page.evaluate("window.ran") is None
        assert page.locator("img").count() == 0
    assert store.read("SELECT rationale FROM labels") == [(bad,)]


@pytest.mark.fault("W4", "W5")
def test_the_browser_itself_refuses_what_the_page_never_does(browser, tmp_path):
    """If there were a hole, the content policy and trusted types stand behind it."""
    with site(stored(tmp_path)) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector(".completion")
        page.evaluate("""() => setTimeout(async () => {  // later: what the debugger runs itself is allowed more
            let refused = 0;
            const script = () => Object.assign(document.createElement("script"), {src: "data:,window.ran=1"});
            for (const hole of [
                () => { document.body.innerHTML = "<img src=x onerror=window.ran=1>"; },
                () => { document.write("<script>window.ran=1<" + "/script>"); },
                () => { document.body.append(script()); },
                () => { eval("window.ran=1"); },
                () => { if (!setTimeout("window.ran=1")) throw 0; },
                () => { document.createElement("iframe").srcdoc = "<script>parent.ran=1<" + "/script>"; },
            ]) { try { hole(); } catch { refused++; } }
            await fetch("http://127.0.0.1:1/").catch(() => refused++);
            setTimeout(() => { window.refused = refused; }, 200);
        })""")
        until(page, "window.refused !== undefined")
        assert page.evaluate("[window.ran ?? null, window.refused]") == [None, 7]
        page.close()


@pytest.mark.fault("W5")
def test_a_page_elsewhere_can_do_nothing(browser, tmp_path):
    """Another origin of the same browser, with the cookie there: forms, fetches and images have no effect."""
    store = stored(tmp_path, n=2)
    with site(store) as address, site(stored_in(tmp_path / "b")) as elsewhere:
        context = browser.new_context()
        ours = context.new_page()
        ours.goto(address)
        ours.wait_for_selector(".completion")
        base = address.split("?")[0]
        page = context.new_page()
        page.route(
            elsewhere.split("?")[0] + "evil", lambda route: route.fulfill(body="<p>evil", content_type="text/html")
        )
        page.goto(elsewhere.split("?")[0] + "evil")
        statuses: list[int] = []
        context.on("response", lambda r: statuses.append(r.status) if r.url.startswith(base) else None)
        page.evaluate(f"""async () => {{
            const body = JSON.stringify({{annotator: "evil"}});
            for (const options of [
                {{}}, {{credentials: "include"}}, {{mode: "no-cors", credentials: "include"}},
                {{method: "POST", mode: "no-cors", credentials: "include", body}},
                {{method: "POST", credentials: "include", headers: {{"content-type": "application/json"}}, body}},
                {{method: "DELETE", credentials: "include"}},
            ]) await fetch("{base}api/label/next", options).catch(() => 0);
            const form = document.createElement("form");
            const to = {{action: "{base}api/label/next", method: "POST", enctype: "text/plain", target: "_blank"}};
            Object.assign(form, to);
            form.append(Object.assign(document.createElement("input"), {{name: body, value: ""}}));
            document.body.append(form); form.submit();
            await new Promise((go) => {{
                const socket = new WebSocket("{base.replace("http", "ws")}"); socket.onclose = socket.onerror = go; }});
            await new Promise((go) => setTimeout(go, 200));
        }}""")
        last = time.monotonic() + LONG
        while not statuses and time.monotonic() < last:
            page.wait_for_timeout(20)  # the browser tells of answers in its own time
        assert statuses
        assert set(statuses) <= {403, 405}
        context.close()
    assert store.read("SELECT DISTINCT annotator FROM leases") == [("anna",)]


def stored_in(folder: Path) -> Store:
    """A store in a folder of its own."""
    folder.mkdir()
    return stored(folder)


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_nothing_is_cut_off(browser, tmp_path, width, scheme):
    """No kind of page is wider than the window, and what has to be pressed is inside it."""
    for kind in ("pairs", "ranking", "score10"):
        (tmp_path / kind).mkdir()
        store = Store(tmp_path / kind / "labels.db", kind)
        store.add([Item(RICH + "x" * 300, [RICH, "short", "w" * 2000][: 2 if kind == "pairs" else 3])])
        with opened(browser, store, width=width, color_scheme=scheme) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            edges = """[...document.querySelectorAll("button")].map((b) => b.getBoundingClientRect())
                .filter((box) => box.left < 0 || box.right > innerWidth).length"""
            assert page.evaluate(edges) == 0
            words = """[...document.querySelectorAll("button")].filter((b) => /\\S/.test(b.textContent)
                && b.scrollWidth > b.clientWidth + 1 || b.clientHeight > 48).map((b) => b.textContent)"""
            assert page.evaluate(words) == []  # none is broken into lines
            colours = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            )
            assert (sum(map(int, colours[0][4:-1].split(","))) < 300) == (scheme == "dark")
