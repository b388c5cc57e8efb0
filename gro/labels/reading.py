"""A file of labels as it is, also where it cannot be changed."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from gro import read_only
from gro.errors import GroError
from gro.labels.answers import KINDS, Kind


class Labels:
    """What was labelled, for what shows, exports and learns.  Changes nothing in the file.

    >>> with Labels("labels.db") as labels:
    ...     export(labels, "preference")
    """

    kind: Kind
    """What was asked."""

    def __init__(self, path: str | Path) -> None:
        """Raises GroError where it is no file of labels."""
        self.path = Path(path)
        self._lock = threading.RLock()
        if not self.path.is_file():
            raise GroError(f"{path}: there is no such file of labels")
        try:
            self._db, row = read_only.connect(self.path, "SELECT value FROM meta WHERE key = 'kind'")
            self.kind = KINDS[json.loads(row[0])]
        except (sqlite3.Error, TypeError, ValueError, KeyError) as e:
            raise GroError(f"{path} is not a file of labels") from e

    def read(self, query: str, parameters: Any = ()) -> list[Any]:
        """Rows of the tables.  Raises GroError where the file is damaged, or has gone."""
        with self._lock:
            try:
                return self._db.execute(query, parameters).fetchall()
            except sqlite3.Error as e:
                raise GroError(f"{self.path} cannot be read: {e}") from e

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Labels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def kind_of(path: str | Path) -> Kind:
    """The kind of labels in a file; a `GroError` where it is not one."""
    with Labels(path) as labels:
        return labels.kind
