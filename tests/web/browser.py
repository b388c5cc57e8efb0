"""A real browser for tests, or a clear message why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def chromium() -> str | None:
    """Where the system's Chromium is; None: playwright's own, if it has one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def launched() -> Iterator[Any]:
    """A headless browser; skips where there is none: `playwright install chromium` or a system package brings one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        except sync_api.Error as e:
            pytest.skip(f"no browser can be started (playwright install chromium): {str(e).splitlines()[0]}")
        try:
            yield browser
        finally:
            browser.close()
