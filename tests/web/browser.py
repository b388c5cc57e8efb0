"""A real browser for tests, or a clear message why there is none; pages on which nothing may go wrong unseen."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_STARTING = 120
"""Seconds for a browser to start, on a machine that has much else to do."""
LONG = 60
"""Seconds to wait for what has to come, on such a machine."""


def candidates(own: str) -> list[str]:
    """Where one may be: what CHROMIUM names, else playwright's own, which fits it best, and the system's."""
    if named := os.environ.get("CHROMIUM"):
        return [named]
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return [path for path in (own, *map(shutil.which, names)) if path and Path(path).exists()]


def start(playwright: Any) -> Any:
    """The first one that starts.  Raises LookupError, with the reason, where none does."""
    from playwright.sync_api import Error

    why = "none is installed"
    for path in candidates(playwright.chromium.executable_path):
        try:  # playwright's own is started by no path: without a window it has a smaller one
            given = None if path == playwright.chromium.executable_path else path
            browser = playwright.chromium.launch(executable_path=given, args=["--no-sandbox"], timeout=1000 * _STARTING)
            if _shows_text(browser):
                return browser
            browser.close()
            why = f"{path} has no font"
        except Error as e:
            why = f"{path} does not start: {str(e).splitlines()[0]}"
    raise LookupError(why)


def _shows_text(browser: Any) -> bool:
    """Without any font it starts, and shows nothing."""
    page = browser.new_page()
    page.set_content("<p>text")
    shown = page.locator("p").inner_text()
    page.close()
    return shown == "text"


@contextmanager
def launched() -> Iterator[Any]:
    """A headless browser; the test is skipped where there is none.

    While it is open, this thread belongs to playwright's event loop, and `asyncio.run` in it fails: so it is for one
    module of tests, and not for all of them.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = start(playwright)
        except LookupError as e:
            pytest.skip(f"no browser: {e}; `make browser` or `playwright install chromium` brings one")
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def strict_page(browser: Any, expected: str = "(?!)", **settings: Any) -> Iterator[Any]:
    """A page in a context of its own.  Whatever its scripts or the browser complain about fails the test, but for what
    matches `expected`; until then it is in `page.faults`."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | settings))
    context.set_default_timeout(1000 * LONG)
    page, faults = context.new_page(), []

    def complaint(message: Any) -> None:
        if message.type == "error" and not re.search(expected, message.text):
            faults.append(message.text)

    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", complaint)
    page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.faults = faults
    try:
        yield page
        assert faults == []
    finally:
        context.close()


def until(page: Any, told: str, argument: Any = None) -> Any:
    """What an expression tells, as soon as it is something.

    Playwright's `wait_for_function` evaluates text inside the page, which the content policy refuses.
    """
    last = time.monotonic() + LONG
    while not (found := page.evaluate(told, argument)):
        assert time.monotonic() < last, f"never: {told} {argument} at {page.evaluate('location.hash')}"
        page.wait_for_timeout(20)
    return found


def box(page: Any, what: str) -> dict[str, float]:
    """Where the first such element is, in pixels of the window.

    Looked up and measured at once: playwright does these one after the other, and finds nothing where the page has
    drawn the element anew in between.
    """
    return until(
        page,
        """what => { const { x, y, width, height } = document.querySelector(what)?.getBoundingClientRect() ?? {};
        return x === undefined ? null : { x, y, width, height }; }""",
        what,
    )


def all_named(page: Any) -> None:
    """Everything that can be reached or is a landmark says what it is."""
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, section, [tabindex], [role=listbox], [role=region]')]
        .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
        .map(e => e.outerHTML)"""
    )
    assert unnamed == []


def fits(page: Any, width: int, scheme: str) -> None:
    """Nothing is wider than the window, and ink and paper are those of the scheme."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[1] > light[0]) == (scheme == "light")
