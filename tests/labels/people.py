"""People for tests: they answer by a rule that is a function of the texts, through the file of labels."""

from __future__ import annotations

import json
import sqlite3
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gro.labels.reading import kind_of
from gro.labels.store import Sent, Store
from gro.raters.human import RATINGS

Rule = Callable[[list[str]], Any]
"""From the texts in the order shown to the answer."""


def spoken(text: Any) -> str:
    """The text, also of a completion in messages."""
    return text if isinstance(text, str) else text[0]["content"]


def number(text: str, n: int) -> int:
    """A whole number below n that a text always has."""
    return zlib.crc32(text.encode()) % n


def scores(texts: list[str]) -> Any:
    """From 1 to 5."""
    return {"scores": [1 + number(text, 5) for text in texts]}


def best(texts: list[str]) -> Any:
    """The one with the highest number."""
    return {"choice": max(range(len(texts)), key=lambda i: number(texts[i], 1 << 30))}


class Person:
    """Answers what a run asks; opened anew for each look, so that no file is open where processes are forked."""

    def __init__(self, run: Path, rule: Rule = scores, name: str = "anna", per_item: int = 1) -> None:
        self.path, self.rule, self.name, self.per_item = run / RATINGS, rule, name, per_item
        self.said: dict[str, Any] = {}
        """Every answer by its item."""

    def answer(self) -> bool:
        """The next item, if there is one."""
        if not waiting(self.path.parent):
            return False
        store = Store(self.path, kind_of(self.path).name, per_item=self.per_item)
        try:
            offered = store.offer(self.name)
            if offered is None:
                return False
            said = self.rule([spoken(text) for text in offered.completions])
            store.label(Sent(self.name, offered.item, offered.lease, uuid.uuid4().hex, said))
            self.said[offered.item] = said
            return True
        finally:
            store.close()


def waiting(run: Path) -> int:
    """How many items the run has asked about and not yet used."""
    return len(_rows(run, "SELECT id FROM items WHERE id NOT IN (SELECT item FROM used)"))


def labels(run: Path) -> list[tuple[str, Any]]:
    """Item and answer of every label, in order."""
    return [(item, json.loads(answer)) for item, answer in _rows(run, "SELECT item, answer FROM labels ORDER BY id")]


def _rows(run: Path, query: str) -> list[Any]:
    """Nothing where the run has not come so far."""
    if not (run / RATINGS).is_file():
        return []
    db = sqlite3.connect(run / RATINGS, timeout=30)
    try:
        return db.execute(query).fetchall()
    except sqlite3.OperationalError:  # its tables are just being made
        return []
    finally:
        db.close()
