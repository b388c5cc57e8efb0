"""The labels of a file `labels.db`: what was answered is on disk before the answer is acknowledged.

SQLite with a write-ahead log and `synchronous=FULL`: a transaction that returned has been synced.  Everything that
looks and then writes is one transaction, so that two people, two tabs and a repeated request cannot do it twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gro.errors import GroError
from gro.labels.answers import KINDS, checked, is_skip
from gro.labels.items import Item, digest
from gro.labels.reading import Labels

VERSION = 1
_PATIENCE = 10.0
"""Seconds to wait for others who write at this moment."""
LEASE_SECONDS = 600.0
"""How long an item is kept for who is looking at it."""

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);                         -- value is JSON
CREATE TABLE items (                                                                   -- id: from the content
    id TEXT PRIMARY KEY, place REAL NOT NULL, prompt TEXT NOT NULL, completions TEXT NOT NULL,      -- both are JSON
    prompt_sha TEXT NOT NULL, completion_shas TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0);
CREATE INDEX queue ON items (place, done);
CREATE TABLE leases (
    item TEXT NOT NULL REFERENCES items, annotator TEXT NOT NULL, lease TEXT NOT NULL, shown TEXT NOT NULL,
    expires REAL NOT NULL, PRIMARY KEY (item, annotator)) WITHOUT ROWID;
CREATE INDEX lease_of ON leases (annotator);
CREATE TABLE labels (                                                                  -- a withdrawn one stays
    id INTEGER PRIMARY KEY, item TEXT NOT NULL REFERENCES items, annotator TEXT NOT NULL, kind TEXT NOT NULL,
    prompt_sha TEXT NOT NULL, shown TEXT NOT NULL,                                     -- hashes in the order shown
    answer TEXT NOT NULL, skipped INTEGER NOT NULL, rationale TEXT NOT NULL, seconds REAL, key TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL, created REAL NOT NULL, withdrawn REAL);
CREATE UNIQUE INDEX standing ON labels (item, annotator) WHERE withdrawn IS NULL;
CREATE INDEX label_of ON labels (annotator, id);
"""
"""Times are seconds since 1970 (UTC)."""

USED = """
CREATE TABLE IF NOT EXISTS used (item TEXT PRIMARY KEY REFERENCES items, time REAL NOT NULL) WITHOUT ROWID
"""
"""Items whose labels a run has learnt from (`gro.labels.used`): from then on they stay as they are."""


class Conflict(GroError):
    """Somebody was faster, or the form is an old one: nothing was saved."""


class NotSaved(GroError):
    """The disk refused: nothing was saved."""


@dataclass(frozen=True, slots=True)
class Offered:
    """An item for one person, who has it for a while."""

    item: str
    lease: str
    """Comes back with the label: a form from before has another one."""
    prompt: Any
    completions: list[Any]
    """In the order in which this person sees them."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A label as a page sends it."""

    annotator: str
    item: str
    lease: str
    key: str
    """Made once per answer by the page: the same answer sent again has the same key."""
    answer: Any
    rationale: str = ""
    seconds: float | None = None


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is; None where there is none."""
    try:
        file = os.stat(path)
    except FileNotFoundError:
        return None
    return file.st_dev, file.st_ino


class Store(Labels):
    """One file of labels, usable from several threads and several processes."""

    def __init__(self, path: str | Path, kind: str = "pairs", *, per_item: int = 1, seed: int = 0) -> None:
        """Creates the file or opens it; a `GroError` where it holds labels of another kind."""
        self.path, self.kind, self.per_item, self.seed = Path(path), KINDS[kind], per_item, seed
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._keep_log()
            self._place = self.path.absolute()
            self._file = _identity(self._place)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            with self.transaction() as db:
                self._open(db)
        except sqlite3.Error as e:
            raise GroError(f"{self.path} cannot be opened as a file of labels: {e}") from e

    def _keep_log(self) -> None:
        """Where two open a new file at once, this change alone does not wait for the other by itself."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _open(self, db: sqlite3.Connection) -> None:
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            known = {"version": VERSION, "kind": self.kind.name}
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in known.items()])
        try:
            known = {k: json.loads(v) for k, v in db.execute("SELECT key, value FROM meta")}
        except sqlite3.Error as e:
            raise GroError(f"{self.path} is not a file of labels") from e
        if known.get("version") != VERSION:
            raise GroError(f"{self.path} is not a file of labels of this version of gro")
        if known["kind"] != self.kind.name:
            raise GroError(f"{self.path} holds labels of the kind {known['kind']!r}, not {self.kind.name!r}")
        db.execute(USED)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it, synced, or nothing; `NotSaved` where the disk refuses."""
        with self._lock:
            if _identity(self._place) != self._file:  # what is written to a file that was removed is lost
                raise NotSaved(f"not saved: {self.path} has been removed or replaced since it was opened: start again")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise NotSaved(f"not saved: {error}. What was saved before is intact") from error
                if type(error) is sqlite3.DatabaseError:
                    raise NotSaved(f"not saved: {self.path} is damaged: {error}") from error
                raise

    def add(self, items: Iterable[Item], places: Mapping[str, float] | None = None) -> int:
        """Adds what is not there yet; returns how many.  Items with smaller places come first, else as they come."""
        with self.transaction() as db:
            before = db.execute("SELECT count(*), coalesce(max(place), 0) FROM items").fetchone()
            for i, item in enumerate(items):
                place = before[1] + i + 1 if places is None else places[item.id]
                shas = json.dumps([digest(c) for c in item.completions])
                row = (item.id, place, json.dumps(item.prompt), json.dumps(item.completions), digest(item.prompt), shas)
                db.execute(
                    "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (id) DO UPDATE SET place = "
                    + ("excluded.place" if places is not None else "place"),
                    row,
                )
            return db.execute("SELECT count(*) FROM items").fetchone()[0] - before[0]

    def offer(self, annotator: str, *, seconds: float = LEASE_SECONDS) -> Offered | None:
        """The item that this person has already, in any tab, or the next one; None: there is none for them now."""
        now = time.time()
        with self.transaction() as db:
            db.execute("DELETE FROM leases WHERE expires < ? AND annotator != ?", (now, annotator))
            held = db.execute(
                "SELECT item FROM leases JOIN items ON items.id = item WHERE annotator = ? AND done < ?"
                " AND item NOT IN (SELECT item FROM used)",
                (annotator, self.per_item),
            ).fetchone()
            if held is None:
                held = db.execute(
                    """SELECT id FROM items WHERE done < :n AND id NOT IN (SELECT item FROM used)
                    AND done + (SELECT count(*) FROM leases WHERE item = items.id) < :n
                    AND NOT EXISTS (SELECT 1 FROM labels WHERE item = items.id AND annotator = :who
                                    AND withdrawn IS NULL) ORDER BY place LIMIT 1""",
                    {"n": self.per_item, "who": annotator},
                ).fetchone()
            return None if held is None else self._leased(db, held[0], annotator, now + seconds)

    def _leased(self, db: sqlite3.Connection, item: str, annotator: str, expires: float) -> Offered:
        prompt, completions, shas = db.execute(
            "SELECT prompt, completions, completion_shas FROM items WHERE id = ?", (item,)
        ).fetchone()
        texts = dict(zip(json.loads(shas), json.loads(completions), strict=True))
        new = (item, annotator, secrets.token_hex(8), json.dumps(self.shuffled(item, annotator, list(texts))), expires)
        db.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET expires = excluded.expires", new
        )
        lease, shown = db.execute(
            "SELECT lease, shown FROM leases WHERE item = ? AND annotator = ?", (item, annotator)
        ).fetchone()
        return Offered(item, lease, json.loads(prompt), [texts[sha] for sha in json.loads(shown)])

    def shuffled(self, item: str, annotator: str, shas: list[str]) -> list[str]:
        """An order of its own for each item and person, the same when it is shown again."""
        seed = hashlib.sha256(json.dumps([self.seed, item, annotator]).encode()).digest()
        return random.Random(seed).sample(sorted(shas), len(shas))

    def label(self, sent: Sent) -> dict[str, Any]:
        """Saves a label, once: the label's number, and whether it was there already.  `Conflict` says who has it."""
        with self.transaction() as db:
            known = db.execute("SELECT id, item, annotator, answer FROM labels WHERE key = ?", (sent.key,)).fetchone()
            if known is not None:
                if known[1:3] != (sent.item, sent.annotator) or json.loads(known[3]) != sent.answer:
                    raise Conflict("not saved: this key belongs to another label")
                return {"label": known[0], "repeated": True}
            number = self.insert(db, sent, self._standing_lease(db, sent))
            db.execute("DELETE FROM leases WHERE item = ? AND annotator = ?", (sent.item, sent.annotator))
        self._settle()
        return {"label": number, "repeated": False}

    def _settle(self) -> None:
        """What is safe in the log goes into the file, as far as nobody reads it now: so a copy of the file without its
        log has all labels, too."""
        with self._lock, suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def insert(self, db: sqlite3.Connection, sent: Sent, shown: str) -> int:
        """A new label of texts in the order shown (hashes, as JSON); its number."""
        prompt_sha, done = db.execute("SELECT prompt_sha, done FROM items WHERE id = ?", (sent.item,)).fetchone()
        assert done < self.per_item
        answer = checked(self.kind, sent.answer, len(json.loads(shown)))
        version = db.execute("SELECT count(*) + 1 FROM labels WHERE item = ?", (sent.item,)).fetchone()[0]
        skipped = is_skip(answer)
        row = (sent.item, sent.annotator, self.kind.name, prompt_sha, shown, json.dumps(answer), skipped)
        row += (sent.rationale, sent.seconds, sent.key, version, time.time())
        made = db.execute("INSERT INTO labels VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
        db.execute("UPDATE items SET done = done + ? WHERE id = ?", (not skipped, sent.item))
        assert made.lastrowid is not None
        return made.lastrowid

    def _standing_lease(self, db: sqlite3.Connection, sent: Sent) -> str:
        """The hashes that this form shows; a `Conflict` where the form is stale."""
        found = db.execute(
            "SELECT lease, shown FROM leases WHERE item = ? AND annotator = ?", (sent.item, sent.annotator)
        ).fetchone()
        query = "SELECT annotator FROM labels WHERE item = ? AND withdrawn IS NULL AND {} ORDER BY id"
        own = db.execute(query.format("annotator = ?"), (sent.item, sent.annotator)).fetchone()
        others = [a for (a,) in db.execute(query.format("NOT skipped"), (sent.item,))]
        if own is not None:
            raise Conflict(f"not saved: already labelled by {sent.annotator}, perhaps in another tab")
        if len(others) >= self.per_item:
            raise Conflict(f"not saved: already labelled by {', '.join(others)}")
        if db.execute("SELECT 1 FROM used WHERE item = ?", (sent.item,)).fetchone() is not None:
            raise Conflict("not saved: the run has gone on without this answer")
        if found is None:
            if db.execute("SELECT 1 FROM items WHERE id = ?", (sent.item,)).fetchone() is None:
                raise Conflict("not saved: there is no such item")
            holders = [a for (a,) in db.execute("SELECT annotator FROM leases WHERE item = ?", (sent.item,))]
            raise Conflict("not saved: the time for it ended" + (f", and {', '.join(holders)} has it" * bool(holders)))
        if found[0] != sent.lease:
            raise Conflict("not saved: the form is an old one")
        return found[1]

    def undo(self, annotator: str, label: int) -> Offered | None:
        """Withdraws a label of this person, and offers its item again; the same where it was withdrawn already."""
        now = time.time()
        with self.transaction() as db:
            found = db.execute("SELECT item, skipped, withdrawn FROM labels WHERE id = ? AND annotator = ?",
                               (label, annotator)).fetchone()  # fmt: skip
            if found is None:
                raise Conflict(f"{annotator} has no label number {label}")
            if db.execute("SELECT 1 FROM used WHERE item = ?", (found[0],)).fetchone() is not None:
                raise Conflict("the run has learnt from this label already, so it stays")
            again = None
            if found[2] is None:
                db.execute("UPDATE labels SET withdrawn = ? WHERE id = ?", (now, label))
                db.execute("UPDATE items SET done = done - ? WHERE id = ?", (1 - found[1], found[0]))
                db.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))
                again = self._leased(db, found[0], annotator, now + LEASE_SECONDS)
        self._settle()
        return again or self.offer(annotator)

    def last(self, annotator: str) -> int | None:
        """The number of the label that this person would undo."""
        query = (
            "SELECT max(id) FROM labels WHERE annotator = ? AND withdrawn IS NULL"
            " AND item NOT IN (SELECT item FROM used)"
        )
        return self.read(query, (annotator,))[0][0]
