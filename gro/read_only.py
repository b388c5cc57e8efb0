"""SQLite files that are looked at and never changed, also where they cannot be (an archive, another user's run)."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

PATIENCE = 10.0
"""Seconds to wait for who is writing."""


def connect(path: Path, query: str) -> tuple[sqlite3.Connection, Any]:
    """A connection that cannot write, for several threads, and the first row of a query: only that shows whether the
    file can be read.  Raises sqlite3.Error where it cannot."""
    try:
        return _connect(path, query, "mode=ro")
    except sqlite3.OperationalError:
        # SQLite wants to create its index of the WAL beside the file; without a WAL it can do without.
        if path.with_name(path.name + "-wal").exists():
            raise
        return _connect(path, query, "mode=ro&immutable=1")


def _connect(path: Path, query: str, mode: str) -> tuple[sqlite3.Connection, Any]:
    place = f"{path.absolute().as_uri()}?{mode}"
    connection = sqlite3.connect(place, uri=True, timeout=PATIENCE, check_same_thread=False)
    try:
        return connection, connection.execute(query).fetchone()
    except BaseException:
        connection.close()
        raise
