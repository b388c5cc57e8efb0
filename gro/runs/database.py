"""The tables of a run and the transactions that fill them."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gro import read_only
from gro.errors import GroError
from gro.runs import files
from gro.runs.plain import encodable, plain
from gro.runs.records import Level, RolloutRecord, pack_floats, pack_ids

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);                       -- value is JSON
CREATE TABLE sessions (                                                              -- one per process that wrote
    id INTEGER PRIMARY KEY, opened REAL NOT NULL, closed REAL, pid INTEGER NOT NULL, host TEXT NOT NULL,
    versions TEXT NOT NULL);
CREATE TABLE steps (step INTEGER PRIMARY KEY, time REAL NOT NULL);                   -- when it was recorded
CREATE TABLE metrics (                                                               -- NULL: it was not finite
    step INTEGER NOT NULL, name TEXT NOT NULL, value REAL, PRIMARY KEY (name, step)) WITHOUT ROWID;
CREATE TABLE prompts (
    step INTEGER NOT NULL, "group" INTEGER NOT NULL, key INTEGER NOT NULL, text TEXT NOT NULL, ids BLOB NOT NULL,
    PRIMARY KEY (step, "group"));
CREATE TABLE rollouts (
    id INTEGER PRIMARY KEY, step INTEGER NOT NULL, row INTEGER NOT NULL, "group" INTEGER NOT NULL,
    text TEXT NOT NULL, ids BLOB NOT NULL, role TEXT NOT NULL, reward REAL, rewards TEXT NOT NULL,
    finish TEXT NOT NULL, temperature REAL NOT NULL, version INTEGER NOT NULL, UNIQUE (step, row));
CREATE TABLE tokens (                                   -- float32, little-endian: one per token, or one for all
    rollout INTEGER NOT NULL, name TEXT NOT NULL, "values" BLOB NOT NULL, PRIMARY KEY (rollout, name));
CREATE TABLE events (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, step INTEGER, level TEXT NOT NULL, message TEXT NOT NULL,
    data TEXT NOT NULL);
"""
"""Times are seconds since 1970 (UTC); ids are int32, little-endian.  Nothing in it is an absolute path."""


_UPSERT_META = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class EmptyRunError(GroError):
    """The process that made the database was killed before there was a table in it."""


class Database:
    """The writing side: one connection, usable from several threads, every change inside a `transaction`."""

    def __init__(self, path: Path) -> None:
        """Create or open the database at `path`.  Raises DiskError or, for another schema, GroError."""
        self.path = path
        self._connection = _connect_writing(path)
        self._guard = threading.RLock()

    def one(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None where there is no row.  GroError where the file is damaged."""
        try:
            with self._guard:
                row = self._connection.execute(query, parameters).fetchone()
        except sqlite3.DatabaseError as error:
            raise GroError(f"cannot read {self.path}: {error}") from error
        return None if row is None else row[0]

    @contextmanager
    def transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        """All of the block's statements or none; the disk's refusal becomes a DiskError that says `doing`."""
        with self._guard:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                files.announce("commit", self.path)
                self._connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                if isinstance(error, (sqlite3.OperationalError, OSError)):
                    number = error.errno if isinstance(error, OSError) else None
                    why = files.describe(error, self.path) if isinstance(error, OSError) else str(error)
                    free = files.size_text(files.free_bytes(self.path))
                    message = f"cannot {doing} {self.path}: {why}; {free} free. What was recorded before is intact"
                    raise files.DiskError(message, number) from error
                if type(error) is sqlite3.DatabaseError:
                    raise GroError(f"cannot {doing} {self.path}: the file is damaged: {error}") from error
                raise

    def close(self) -> None:
        """Close the connection; the last one to close removes the WAL."""
        with self._guard:
            self._connection.close()


def insert_metrics(database: sqlite3.Connection, step: int, metrics: Mapping[str, float]) -> None:
    """Values that are not finite become NULL, each with an event.  Raises ValueError for a name recorded before."""
    values = {str(name): float(value) for name, value in metrics.items()}
    database.execute("INSERT OR IGNORE INTO steps VALUES (?, ?)", (step, time.time()))
    for name, value in values.items():
        if not math.isfinite(value):
            insert_event(database, "warning", f"{name} is {value} at step {step}", step, {"metric": name})
    try:
        database.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?)",
            [(step, name, value if math.isfinite(value) else None) for name, value in values.items()],
        )
    except sqlite3.IntegrityError as error:
        raise ValueError(f"step {step} is recorded already: one of {', '.join(values)}") from error


def insert_rollouts(database: sqlite3.Connection, step: int, records: Sequence[RolloutRecord]) -> None:
    """The rollouts of a step, each group's prompt once.  Rewards that are not finite become NULL, with an event."""
    prompts: dict[int, bytes] = {}
    for record in records:
        ids = pack_ids(record.prompt_ids)
        if record.group not in prompts:
            prompts[record.group] = ids
            row = (step, record.group, record.key, encodable(record.prompt), ids)
            database.execute("INSERT INTO prompts VALUES (?, ?, ?, ?, ?)", row)
        assert prompts[record.group] == ids, f"group {record.group} of step {step} has two prompts"
        reward = None if record.reward is None else float(record.reward)
        if reward is not None and not math.isfinite(reward):
            message = f"the reward of row {record.row} is {reward} at step {step}"
            insert_event(database, "warning", message, step, {"row": record.row})
            reward = None
        row = (
            step,
            record.row,
            record.group,
            encodable(record.completion),
            pack_ids(record.completion_ids),
            record.role,
            reward,
            json.dumps(plain(record.rewards, finite=True)),
            record.finish,
            float(record.temperature),
            int(record.version),
        )
        rollout = database.execute("INSERT INTO rollouts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        _insert_tokens(database, step, record, rollout.lastrowid)


def _insert_tokens(database: sqlite3.Connection, step: int, record: RolloutRecord, rollout: int | None) -> None:
    rows: list[tuple[int | None, str, bytes]] = []
    for name, values in record.tokens.items():
        data = None if values is None else pack_floats(values, len(record.completion_ids), name)
        if data is None:
            continue
        if np.isinf(np.frombuffer(data, dtype="<f4")).any():
            message = f"{name} of row {record.row} is infinite at step {step}"
            insert_event(database, "warning", message, step, {"row": record.row, "tokens": name})
        rows.append((rollout, name, data))
    database.executemany("INSERT INTO tokens VALUES (?, ?, ?)", rows)


def insert_event(
    database: sqlite3.Connection, level: Level, message: str, step: int | None, data: Mapping[str, Any]
) -> None:
    """One event, at the present time."""
    row = (time.time(), step, level, encodable(message), json.dumps(plain(data, finite=True)))
    database.execute("INSERT INTO events (time, step, level, message, data) VALUES (?, ?, ?, ?, ?)", row)


def insert_meta(database: sqlite3.Connection, key: str, value: Any) -> None:
    """Set `key` to a plain value."""
    database.execute(_UPSERT_META, (key, json.dumps(plain(value, finite=True))))


def delete_after(database: sqlite3.Connection, step: int) -> int:
    """Delete everything of later steps; how many of them there were."""
    forgotten = database.execute("SELECT count(*) FROM steps WHERE step > ?", (step,)).fetchone()[0]
    later = "(SELECT id FROM rollouts WHERE step > ?)"
    database.execute(f"DELETE FROM tokens WHERE rollout IN {later}", (step,))
    for table in ("rollouts", "prompts", "metrics", "events", "steps"):
        database.execute(f"DELETE FROM {table} WHERE step > ?", (step,))
    return forgotten


def _connect_writing(path: Path) -> sqlite3.Connection:
    try:
        files.announce("create", path)
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            # FULL: a step that was reported as recorded is on the disk, also after a power cut.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                files.announce("commit", path)
                connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise GroError(f"{path} has schema {version}; this version of gro writes schema {SCHEMA_VERSION}")
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        why = files.describe(error, path) if isinstance(error, OSError) else str(error)
        raise files.DiskError(f"cannot open {path}: {why}") from error
    return connection


def connect_reading(path: Path) -> sqlite3.Connection:
    """A read-only connection; GroError where this version cannot read what is there."""
    try:
        connection, (version,) = read_only.connect(path, "PRAGMA user_version")
    except sqlite3.DatabaseError as error:
        raise GroError(f"cannot read {path}: {error}") from error
    if version != SCHEMA_VERSION:
        connection.close()
        if version == 0:
            raise EmptyRunError(f"{path.parent} holds no run yet: it was stopped before anything was recorded")
        raise GroError(f"{path} has schema {version}; this version of gro reads schema {SCHEMA_VERSION}")
    return connection
