"""Replies that were given before."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gro.errors import GroError


class Cache:
    """Replies by what was asked of whom and how, in one SQLite file that several processes may share.

    >>> cache = Cache("judge.db")
    >>> cache.put(Cache.key({"model": "m", "question": "..."}), "Verdict: A")
    """

    def __init__(self, path: str | Path) -> None:
        """Raises GroError where the file cannot be used."""
        self._path = Path(path).expanduser()
        self._lock = threading.Lock()
        try:
            # One connection for all threads, one at a time.
            self._database = sqlite3.connect(self._path, timeout=60, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise GroError(f"the judge's cache {path} cannot be used: {error}; give another file, or none") from error

    @staticmethod
    def key(asked: Mapping[str, Any]) -> str:
        """A digest of model, template, inputs and sampling: any of them another, and it is another question."""
        return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """The reply, if there is one."""
        with self._lock:
            row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, reply: str) -> None:
        """Keeps a reply at once: it cost time, and perhaps money."""
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
