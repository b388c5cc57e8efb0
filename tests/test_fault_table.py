"""The table of faults: every row has a test, every marker a row."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"

_TO_COME: set[str] = set()
"""Rows that no test proves yet.  It only ever gets shorter."""


@pytest.fixture(scope="module")
def table() -> Iterator[Any]:
    """docs/fault_table.py as a module."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("fault_table")
    finally:
        sys.path.remove(str(DOCS))


def test_every_fault_has_a_test(table: Any) -> None:
    assert set(table.FAULTS) - set(table.marked()) - _TO_COME == set(), "no test carries their marker"
    assert _TO_COME & set(table.marked()) == set(), "they have a test now: take them out of _TO_COME"


def test_every_marker_has_a_row(table: Any) -> None:
    unknown = {id: tests for id, tests in table.marked().items() if id not in table.FAULTS}
    assert not unknown


def test_rows_are_in_order(table: Any) -> None:
    places = [(list(table.SECTIONS).index(id[0]), int(id[1:])) for id in table.FAULTS]
    assert places == sorted(places)
    assert [sum(id[0] == letter for id in table.FAULTS) for letter in table.SECTIONS] == [16, 5, 6, 11, 10, 6, 5, 9]


def test_markers_are_read_from_decorators_only(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROOT", tmp_path)
    path = tmp_path / "test_x.py"
    mark = "pytest.mark." + "fault"
    path.write_text(f"""
@{mark}("D1", "D2")
@pytest.mark.parametrize("x", [pytest.param(1, marks={mark}("D3"))])
@pytest.mark.slow
def test_a(x): ...
""")
    assert [(id, test.name, test.slow) for id, test in table._of_file(path)] == [
        ("D1", "test_a", True), ("D2", "test_a", True), ("D3", "test_a", True),
    ]  # fmt: skip
    path.write_text(f"lost = {mark}('D1')\n")
    with pytest.raises(ValueError, match=r"test_x\.py, line 1"):
        list(table._of_file(path))
