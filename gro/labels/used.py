"""What a run does with a file of labels: asks, looks who has yet to answer, and takes the answers to learn from them.

What was taken stays as it is: a run that goes on from an earlier state asks for the same items, and must get the same
answers again.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from gro.labels.items import Item
from gro.labels.store import Sent, Store

Answers = dict[str, list[tuple[list[str], dict[str, Any]]]]
"""Of each item what people have said, skips left out: the hashes in the order shown, and the answer."""

_STANDING = "labels WHERE withdrawn IS NULL AND item IN (SELECT value FROM json_each(?))"


def begin(store: Store, how: Mapping[str, Any], made_up: Sequence[str]) -> None:
    """Says how the run asks.  Where that is another way than before, it has learnt from nothing yet and was begun anew:
    nothing is used any more, and what raters have said who were made up is forgotten.  What people have said stays.

    how: what the answers of made-up raters follow from.  made_up: their names.
    """
    now = json.loads(json.dumps({"how": how, "made_up": list(made_up)}, default=str))
    with store.transaction() as db:
        row = db.execute("SELECT value FROM meta WHERE key = 'asking'").fetchone()
        before = None if row is None else json.loads(row[0])
        if before == now:
            return
        if before is not None:
            db.execute("DELETE FROM used")
            names = (json.dumps(before["made_up"]),)
            db.execute("DELETE FROM labels WHERE annotator IN (SELECT value FROM json_each(?))", names)
            standing = "labels.item = items.id AND withdrawn IS NULL AND NOT skipped"
            db.execute(f"UPDATE items SET done = (SELECT count(*) FROM labels WHERE {standing})")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('asking', ?)", (json.dumps(now),))


def asking_now(store: Store) -> dict[str, Any] | None:
    """What `begin` was told last; None: the run has not come so far."""
    row = store.read("SELECT value FROM meta WHERE key = 'asking'")
    return json.loads(row[0][0])["how"] if row else None


def ask(store: Store, items: Sequence[Item]) -> None:
    """Adds items, and takes away what was asked before and nobody needs any more: what a run that was begun anew with
    other settings has left behind, as far as nobody has answered."""
    with store.transaction() as db:
        stale = (
            "id NOT IN (SELECT value FROM json_each(?)) AND id NOT IN (SELECT item FROM used)"
            " AND id NOT IN (SELECT item FROM labels)"
        )
        asked = (json.dumps([item.id for item in items]),)
        db.execute(f"DELETE FROM leases WHERE item IN (SELECT id FROM items WHERE {stale})", asked)
        db.execute(f"DELETE FROM items WHERE {stale}", asked)
    store.add(items)


def missing(store: Store, items: Collection[str]) -> int:
    """How many answers, of which a skip is one, are missing until per_item people have answered each of the items."""
    rows = store.read(f"SELECT count(*) FROM {_STANDING} GROUP BY item", (json.dumps(list(items)),))
    return len(items) * store.per_item - sum(min(count, store.per_item) for (count,) in rows)


def use(store: Store, items: Collection[str]) -> Answers | None:
    """The answers to these items, which from now on stay as they are; None where some are missing."""
    with store.transaction() as db:
        if missing(store, items):
            return None
        new = ((item, time.time()) for item in items)
        db.executemany("INSERT INTO used VALUES (?, ?) ON CONFLICT DO NOTHING", new)
        answers: Answers = {item: [] for item in items}
        query = f"SELECT item, shown, answer FROM {_STANDING} AND NOT skipped ORDER BY id"
        for item, shown, answer in store.read(query, (json.dumps(list(items)),)):
            answers[item].append((json.loads(shown), json.loads(answer)))
        return answers


def simulate(store: Store, who: Iterable[tuple[str, str]], say: Callable[[str, str, list[str]], Any]) -> None:
    """Labels of items by annotators that are no people, in one transaction, where answers are missing.

    who: items and annotators.  say: the answer of an annotator to an item's completions (hashes, in the order shown).
    """
    with store.transaction() as db:
        for item, annotator in who:
            if missing(store, [item]):
                (shas,) = db.execute("SELECT completion_shas FROM items WHERE id = ?", (item,)).fetchone()
                shown = store.shuffled(item, annotator, json.loads(shas))
                sent = Sent(annotator, item, "", secrets.token_hex(16), say(item, annotator, shown))
                store.insert(db, sent, json.dumps(shown))
