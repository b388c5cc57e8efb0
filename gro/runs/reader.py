"""Reading a run, finished or going on, without its lock: what reports, comparisons and web pages use."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from gro.errors import GroError
from gro.runs import files
from gro.runs.database import connect_reading
from gro.runs.lock import Owner, owner
from gro.runs.records import Event, RolloutRecord, unpack_floats, unpack_ids
from gro.runs.store import CONFIG, DATABASE, LOCK

Status = Literal["running", "interrupted", "finished"]
"""interrupted: neither finished nor owned by a process; the same command continues it."""

# The names first, each found from the one before: the table is sorted by name and step, and has no index by step.
_METRICS = """
WITH RECURSIVE names (name) AS (
    SELECT min(name) FROM metrics
    UNION ALL SELECT (SELECT min(name) FROM metrics WHERE name > names.name) FROM names WHERE names.name IS NOT NULL)
SELECT m.name, m.step, m.value FROM names CROSS JOIN metrics m ON m.name = names.name
WHERE m.step >= ? ORDER BY m.name, m.step
"""
_ROLLOUTS = """
SELECT r.id, r."group", r.row, p.text, p.ids, r.text, r.ids, r.role, r.reward, r.rewards, r.finish, p.key,
       r.temperature, r.version, r.step
FROM rollouts r JOIN prompts p ON p.step = r.step AND p."group" = r."group"
"""


class RunReader:
    """Read-only access to a run directory.  Sees what is committed at each call, also while the run goes on.

    >>> RunReader("runs/first").metrics()["reward"]
    (array([1, 2, 3]), array([0.25, 0.5, 0.5]))
    """

    def __init__(self, path: str | Path) -> None:
        """Raises GroError where there is no run, or one that this version cannot read."""
        self.path = Path(path).expanduser().absolute()
        if not (self.path / DATABASE).is_file():
            raise GroError(f"{self.path} is not a run directory: it has no {DATABASE}{_runs_in(self.path)}")
        self._connection = connect_reading(self.path / DATABASE)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; GroError where the file holds none."""
        found = files.read_yaml(self.path / CONFIG)
        if not isinstance(found, dict):
            raise GroError(f"{self.path / CONFIG} is not the configuration of a run: it holds no keys")
        return found

    @property
    def status(self) -> Status:
        """Whether the run is finished, owned by a living process, or neither."""
        if self._meta("finished") is not None:
            return "finished"
        return "interrupted" if self.owner is None else "running"

    @property
    def owner(self) -> Owner | None:
        """The process that writes to the run now; None: nobody."""
        return owner(self.path / LOCK)

    @property
    def last_step(self) -> int | None:
        """The newest step recorded; None where nothing is."""
        return self._rows("SELECT max(step) FROM steps")[0][0]

    @property
    def summary(self) -> dict[str, Any]:
        """What `finish` was given; empty before."""
        return (self._meta("finished") or {}).get("summary", {})

    @property
    def versions(self) -> dict[str, Any]:
        """Versions and threads of the newest session."""
        rows = self._rows("SELECT versions FROM sessions ORDER BY id DESC LIMIT 1")
        return json.loads(rows[0][0]) if rows else {}

    @property
    def started(self) -> float | None:
        """Seconds since 1970 at which the first session began."""
        return self._rows("SELECT min(opened) FROM sessions")[0][0]

    @property
    def ended(self) -> float | None:
        """Seconds since 1970 at which it finished, or else of the last sign of life."""
        if (finished := self._meta("finished")) is not None:
            return finished["time"]
        query = "SELECT max(t) FROM (SELECT max(time) t FROM steps UNION SELECT max(time) FROM events)"
        return self._rows(query)[0][0]

    def kept(self, key: str) -> Any:
        """What `Run.keep` was given last; None where there is nothing."""
        return self._meta(key)

    def metrics(self, since: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By name: the steps (int64, ascending) and the values (float64; NaN where the value was not finite).

        `since`: from that step on, without reading what is before it (for pages that poll).
        """
        series: dict[str, tuple[list[int], list[float | None]]] = {}
        for name, step, value in self._rows(_METRICS, (since,)):
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
        return {name: (np.array(s, dtype=np.int64), np.array(v, dtype=np.float64)) for name, (s, v) in series.items()}

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One of `metrics`, without reading the others; empty where it was never recorded."""
        return _by_step(self._rows("SELECT step, value FROM metrics WHERE name = ? ORDER BY step", (name,)))

    def times(self, since: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The recorded steps (int64) from `since` on and when they were recorded (seconds since 1970, float64)."""
        return _by_step(self._rows("SELECT step, time FROM steps WHERE step >= ? ORDER BY step", (since,)))

    def rollout_steps(self) -> list[int]:
        """The steps that have rollouts."""
        return [row[0] for row in self._rows("SELECT DISTINCT step FROM prompts ORDER BY step")]

    def prompts(self) -> dict[tuple[int, str], list[int]]:
        """The steps at which each prompt, by its key and text, has rollouts, ascending."""
        found: dict[tuple[int, str], list[int]] = {}
        for key, text, step in self._rows("SELECT DISTINCT key, text, step FROM prompts ORDER BY step"):
            found.setdefault((key, text), []).append(step)
        return found

    def rollouts(self, step: int) -> list[RolloutRecord]:
        """The rollouts of a step in row order."""
        return [record for _, record in self._select(_ROLLOUTS + "WHERE r.step = ? ORDER BY r.row", (step,))]

    def extremes(self, best: bool, limit: int) -> list[tuple[int, RolloutRecord]]:
        """The samples of highest (or lowest) reward over the whole run with their steps; of equals the newest."""
        query = f"""{_ROLLOUTS} WHERE r.reward IS NOT NULL AND r.role = 'sample'
                    ORDER BY r.reward {"DESC" if best else "ASC"}, r.step DESC, r.row LIMIT ?"""
        return self._select(query, (limit,))

    def events(self, after: int = 0) -> list[Event]:
        """All events in order; `after`: leave out that many first ones (for pages that poll)."""
        query = "SELECT time, step, level, message, data FROM events ORDER BY id LIMIT -1 OFFSET ?"
        return [
            Event(when, step, level, message, json.loads(data))
            for when, step, level, message, data in self._rows(query, (after,))
        ]

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Raises GroError where the file is damaged, or has gone."""
        try:
            return self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise GroError(f"cannot read {self.path / DATABASE}: {error}") from error

    def _meta(self, key: str) -> Any:
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def _select(self, query: str, parameters: Sequence[Any]) -> list[tuple[int, RolloutRecord]]:
        rows = self._rows(query, parameters)
        return [(row[14], _record(row, self._tokens(row[0], len(unpack_ids(row[6]))))) for row in rows]

    def _tokens(self, rollout: int, length: int) -> Mapping[str, np.ndarray]:
        query = 'SELECT name, "values" FROM tokens WHERE rollout = ?'
        return {name: unpack_floats(data, length) for name, data in self._rows(query, (rollout,))}


def _by_step(rows: Sequence[tuple[int, float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and a value for each."""
    return np.array([r[0] for r in rows], dtype=np.int64), np.array([r[1] for r in rows], dtype=np.float64)


def _record(row: tuple[Any, ...], tokens: Mapping[str, np.ndarray]) -> RolloutRecord:
    return RolloutRecord(
        group=row[1],
        row=row[2],
        prompt=row[3],
        prompt_ids=unpack_ids(row[4]),
        completion=row[5],
        completion_ids=unpack_ids(row[6]),
        role=row[7],
        reward=row[8],
        rewards=json.loads(row[9]),
        finish=row[10],
        key=row[11],
        temperature=row[12],
        version=row[13],
        tokens=tokens,
    )


def _runs_in(folder: Path, most: int = 5) -> str:
    """Which runs there are in a folder of them, as the end of a sentence."""
    found = sorted(database.parent.name for database in folder.glob(f"*/{DATABASE}"))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"; runs in it: {', '.join(found[:most])}{more}" if found else ""
