"""Shared by the tests of what is shown in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from web.browser import launched


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests of a file, each of which opens a context of its own; skips them where there is none."""
    with launched() as found:
        yield found
