"""One run as the page sees it: read again only where it changed, and of the steps only those that are new."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gro.errors import GroError
from gro.runs import RunReader
from gro.runs.lock import owner
from gro.runs.plain import encodable
from gro.runs.records import Event
from gro.runs.series import Series
from gro.runs.store import CONFIG, DATABASE, LOCK

Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]
_MEASURES = ("reward", "accuracy", "rewards/accuracies", "loss")
"""What the list of runs says of each: the first of these that it has."""
_RECENT = 20
"""Steps over which the speed is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of a run at one moment.  Never changed, so that whoever answers a request needs no lock."""

    series: Series
    version: int = 0
    """Larger after every change."""
    status: str = "unread"
    """unread, running, interrupted, finished; gone: there is no run any more; unreadable."""
    problem: str = ""
    """Why it is gone or unreadable."""
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    times: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The last recorded steps and when they were recorded."""
    alarms: tuple[Mapping[str, Any], ...] = ()
    """In order; what happened that is more than information."""
    events: int = 0
    """How many events were looked through for them."""
    newest: tuple[Event, ...] = ()
    """The last of these; empty where there was none."""
    config: str = ""
    """config.yaml as it is written."""
    command: str = ""
    """That looks inside it."""

    def facts(self) -> dict[str, Any]:
        """A row of the list of runs, for JSON."""
        training, metrics = self.series.config.get("training"), self.series.metrics
        planned = training.get("steps") if isinstance(training, Mapping) else None
        measure = next((name for name in _MEASURES if name in metrics), None)
        return {
            "name": self.series.name,
            "version": self.version,
            "algorithm": self.series.algorithm if self.status != "unread" else "",
            "status": self.status,
            "problem": self.problem,
            "step": int(self.steps[-1]) if len(self.steps) else None,
            "of": planned if isinstance(planned, int) else None,
            "seconds": _pace(self.times),
            "tokens": _last(metrics, "tokens/s"),
            "measure": measure,
            "value": _last(metrics, measure),
            "alarms": len(self.alarms),
            "inspect": self.command,
        }


def _pace(times: np.ndarray) -> float | None:
    """Seconds from step to step; the median, so that a pause between two sessions is none."""
    return float(np.median(np.diff(times))) if len(times) > 1 else None


def _last(metrics: Metrics, name: str | None) -> float | None:
    if name is None or name not in metrics:
        return None
    finite = metrics[name][1][np.isfinite(metrics[name][1])]
    return float(finite[-1]) if len(finite) else None


class Watched:
    """A run directory that is looked at from time to time; `known` is what the last look has found."""

    def __init__(self, name: str, path: Path) -> None:
        self.path = path
        self.known = Known(Series(encodable(name), {}, {}), command=_command(path))
        self.looked = 0.0
        """When it was read last, of a clock without jumps."""
        self._seen: Any = None

    def refresh(self) -> bool:
        """Reads what is new; whether anything is.  Costs three looks at files where nothing happened."""
        seen = self._signs()
        if seen == self._seen:
            return False
        before = self.known
        if seen is None:
            why = f"{self.path} holds no run any more"
            self.known = replace(before, version=before.version + 1, status="gone", problem=why)
        else:
            # The directory may hold another run by now; and what has ended may have recorded more at its last step.
            whole = before.status != "running" or self._seen is None or seen[0] != self._seen[0] or not seen[-1]
            try:
                self.known = self._read(before, whole)
            except (GroError, OSError, ValueError) as error:
                return self._unreadable(encodable(str(error)))
        self._seen, self.looked = seen, time.monotonic()
        return True

    def _unreadable(self, why: str) -> bool:
        """Says so once, and tries again at every look: the disk, or who is making the run, may need a moment."""
        before, self._seen, self.looked = self.known, None, time.monotonic()
        if before.problem == why:
            return False
        empty = Series(before.series.name, {}, {})
        version = before.version + 1
        self.known = Known(empty, version=version, status="unreadable", problem=why, command=before.command)
        return True

    def _signs(self) -> Any:
        """What changes with every commit, without opening the database: (identity, …, owned); None: it is gone.

        Taken before reading, so that a commit meanwhile shows at the next look.
        """
        database = self.path / DATABASE
        try:
            file = os.stat(database)
        except OSError:
            return None
        owned = _is_owned(self.path)
        # Without an owner nothing is being committed, and looking makes an index of its own and an empty log.
        log = _commits(database) if owned else _size_and_time(database.with_name(f"{DATABASE}-wal"))
        return (file.st_dev, file.st_ino), (file.st_size, file.st_mtime_ns), log, owned

    def _read(self, before: Known, whole: bool) -> Known:
        with RunReader(self.path) as run:
            last = int(before.steps[-1]) if len(before.steps) and not whole else None
            steps, times = run.times(since=last or 0)
            newest = before.newest
            new = run.events(after=before.events - len(newest))
            same = len(steps) and steps[0] == last and times[0] == before.times[-1]
            if last is not None and not (same and tuple(new[: len(newest)]) == newest):
                last = None  # steps or events were forgotten, and perhaps steps done again
                steps, times = run.times()
            if last is None:
                series, alarms, events = Series.read(run, before.series.name), (), 0
                newest, new = (), run.events()
                config = (self.path / CONFIG).read_text("utf-8", errors="replace")
            else:
                metrics = _joined(before.series.metrics, run.metrics(since=last), last)
                series, alarms, events = replace(before.series, metrics=metrics), before.alarms, before.events
                new = new[len(newest) :]
                config = before.config
                steps = np.concatenate([before.steps[:-1], steps])
                times = np.concatenate([before.times[:-1], times])
            found = [
                {"level": e.level, "step": e.step, "time": e.time, "message": encodable(e.message)}
                for e in new
                if e.level != "info"
            ]
            return Known(
                series,
                version=before.version + 1,
                status=run.status,
                steps=steps[-_RECENT:],
                times=times[-_RECENT:],
                alarms=(*alarms, *found),
                events=events + len(new),
                newest=(*newest, *new)[-1:],
                config=config,
                command=before.command,
            )


def _command(path: Path) -> str:
    here = Path.cwd()
    return encodable(f"gro inspect {shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))}")


def _commits(database: Path) -> bytes:
    """The head of the index of SQLite's log, which every commit changes at the moment when readers begin to see it.

    The log itself, by its size and time, will not do: it is written, and then synced, before the commit can be seen.
    """
    try:
        with open(f"{database}-shm", "rb") as index:
            return index.read(48)
    except OSError:
        return b""


def _size_and_time(path: Path) -> tuple[int, int] | None:
    """None where the file is empty or missing."""
    try:
        file = os.stat(path)
    except OSError:
        return None
    return (file.st_size, file.st_mtime_ns) if file.st_size else None


def _is_owned(path: Path) -> bool:
    try:
        return owner(path / LOCK) is not None
    except OSError:
        return False


def _joined(before: Metrics, new: Metrics, since: int) -> Metrics:
    """What was known of the steps before `since`, and what is new of it and of later ones."""
    joined = dict(before)
    for name, (steps, values) in new.items():
        if name in before:
            old, known = before[name]
            kept = int(np.searchsorted(old, since))
            steps, values = np.concatenate([old[:kept], steps]), np.concatenate([known[:kept], values])
        joined[name] = (steps, values)
    return dict(sorted(joined.items()))
