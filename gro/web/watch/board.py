"""All the runs that are watched: finding them, and keeping what is known of them fresh."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from gro.errors import GroError
from gro.runs.plain import encodable
from gro.runs.series import short_names
from gro.runs.store import DATABASE
from gro.web.watch.watched import Known, Watched

_PATIENCE = 1.0
"""Seconds that one look at all runs may take; those that it did not come to are read by the next."""


class Board:
    """Runs by name, in the order in which they were found.

    >>> Board(["runs"]).refresh()
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        """`paths`: run directories, and folders whose children are or will be some.  GroError where one is neither."""
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        for path in self.paths:
            if not path.is_dir():
                raise GroError(f"{path} is not a folder: give run directories, or folders of them")
        self.runs: dict[str, Watched] = {}
        self._guard = threading.Lock()
        self._closing = False

    def refresh(self) -> bool:
        """Looks for new runs and for what is new in those known; whether there is nothing left to read.

        May be called from several threads; what has not changed costs little.
        """
        with self._guard:
            known = {watched.path for watched in self.runs.values()}
            self._take_in([path for path in self._found() if path not in known])
            until = time.monotonic() + _PATIENCE
            for watched in sorted(self.runs.values(), key=lambda one: one.looked):
                if self._closing or time.monotonic() > until:
                    return False
                watched.refresh()
            return True

    def known(self) -> dict[str, Known]:
        """What is known of each run."""
        return {name: watched.known for name, watched in self.runs.items()}

    def close(self) -> None:
        """No more reading: a look that is under way ends with the run that it is at."""
        self._closing = True

    def _found(self) -> list[Path]:
        found: list[Path] = []
        for path in self.paths:
            if (path / DATABASE).is_file():
                found.append(path)
                continue
            try:
                with os.scandir(path) as children:
                    names = sorted(child.name for child in children if child.is_dir())
            except OSError:  # the folder has gone; it may come again
                continue
            found += [path / name for name in names if (path / name / DATABASE).is_file()]
        return list(dict.fromkeys(found))

    def _take_in(self, paths: Sequence[Path]) -> None:
        """New runs, each named by as many parts of its path as tell it from the others; a name once given stays."""
        if not paths:
            return
        known = [watched.path for watched in self.runs.values()]
        names = short_names([*known, *paths])[len(known) :]
        for path, short in zip(paths, names, strict=True):
            name = encodable(short)
            while name in self.runs:  # paths that differ in what is no text
                name += "′"
            self.runs = {**self.runs, name: Watched(name, path)}
