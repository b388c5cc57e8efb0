"""Writing a run: the one owner of a run directory.

    config.yaml      the resolved configuration        run.db           metrics, rollouts, events (SQLite, WAL)
    lock             who owns the directory            failures/        tracebacks and what caused them
    checkpoints/     step-N/, exported models          rejected.jsonl   data rows that were skipped
    state/           step-N/, to continue from         report.html      made from the rest

Everything in it is relative, so a run may be moved and copied.  A step number counts updates done: what is recorded at
step n is what the n-th update saw and did, and step 0 is the state before training.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gro.errors import GroError
from gro.runs import files
from gro.runs.database import Database, delete_after, insert_event, insert_meta, insert_metrics, insert_rollouts
from gro.runs.identity import differences, versions
from gro.runs.lock import RunLock
from gro.runs.plain import plain
from gro.runs.records import Level, RolloutRecord

CONFIG, DATABASE, LOCK = "config.yaml", "run.db", "lock"
CHECKPOINTS, STATE = "checkpoints", "state"
FAILURES, REJECTED, REPORT = "failures", "rejected.jsonl", "report.html"

_OURS = {CONFIG, LOCK, CHECKPOINTS, STATE, FAILURES, REJECTED, REPORT, DATABASE, DATABASE + "-wal", DATABASE + "-shm"}
MOST_FAILURES = 100  # files per kind: a reward that always fails must not fill the disk


class Run:
    """A run directory, owned by this process until `close`.  Use it as a context manager; safe to use from threads.

    >>> with Run.open("runs/first", config) as run:
    ...     run.record_rollouts(1, records)
    ...     run.record(1, {"loss": 0.3, "reward": 0.5})
    ...     run.finish(algorithm="grpo")
    """

    def __init__(self, path: Path, lock: RunLock, database: Database) -> None:
        """For `open`, which see."""
        self.path = path
        """The run directory, absolute."""
        self._lock = lock
        self._database = database
        self._staged: dict[int, list[RolloutRecord]] = {}
        self._session: int | None = None
        self.notices: list[str] = []
        """What whoever continues the run should know."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        may_differ: Collection[str] = (),
        rounding: Collection[str] = (),
    ) -> Run:
        """Create the run directory, or continue the unfinished run in it that has the same configuration.

        `config`: everything resolved, in plain values.  `may_differ`: dotted keys, or their first parts, that do not
        change results (logging) and may be other than before.  `rounding`: those of them that change last bits; it is
        noted where they differ.  Where nothing was recorded yet, all may differ.
        Raises GroError where another process owns the directory (within a second), where it holds a finished run, a
        run with another configuration or something that is no run; DiskError where the disk refuses.
        """
        directory = Path(path).expanduser().absolute()
        _create(directory)
        lock = RunLock.acquire(directory / LOCK)
        database = None
        try:
            swept = _sweep(directory)
            before = files.read_yaml(directory / CONFIG) if (directory / CONFIG).exists() else None
            if before is None:
                if (directory / DATABASE).exists():
                    raise GroError(f"{directory} holds a run without its {CONFIG}; restore that or choose another")
                files.write_yaml(directory / CONFIG, config)
            database = Database(directory / DATABASE)
            run = cls(directory, lock, database)
            if before is not None:
                run._check(before, config, may_differ, rounding)
            run._begin_session(swept)
        except BaseException:
            if database is not None:
                database.close()
            lock.release()
            raise
        return run

    @staticmethod
    def tidy(path: Path) -> None:
        """Remove what killed processes have left half written; GroError where another process owns the directory."""
        lock = RunLock.acquire(path / LOCK)
        try:
            _sweep(path)
        finally:
            lock.release()

    @property
    def last_step(self) -> int | None:
        """The newest step recorded; None where nothing is."""
        return self._database.one("SELECT max(step) FROM steps")

    # Recording

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step's metrics with the rollouts given for it before, in one transaction: all or nothing.

        A value that is not finite is kept as missing, with an event.  When this returns, the step survives a kill and
        a power cut.  May be called again for a step with other names.  Raises DiskError where the disk refuses (the
        same call may then be repeated) and ValueError where a name has a value at this step already.
        """
        assert step >= 0, f"step {step}"
        with self._database.transaction(f"record step {step} in") as database:
            insert_metrics(database, step, metrics)
            insert_rollouts(database, step, self._staged.get(step, ()))
        self._staged.pop(step, None)

    def record_rollouts(self, step: int, records: Sequence[RolloutRecord]) -> None:
        """Give rollouts of a step; they are written by the `record` of the same step."""
        self._staged.setdefault(step, []).extend(records)

    def event(self, level: Level, message: str, step: int | None = None, **data: Any) -> None:
        """Record at once that something happened."""
        with self._database.transaction("record an event in") as database:
            insert_event(database, level, message, step, data)

    def rewind(self, step: int) -> int:
        """Forget what was recorded after `step`, to do those steps again; the number of steps forgotten."""
        with self._database.transaction("rewind") as database:
            if forgotten := delete_after(database, step):
                message = f"continues after step {step}; later steps ({forgotten}) will be done again"
                insert_event(database, "info", message, None, {"step": step, "forgotten": forgotten})
        self._staged.clear()
        return forgotten

    def keep(self, key: str, value: Any) -> None:
        """Remember a plain value for later attempts at this run."""
        with self._database.transaction(f"keep {key} in") as database:
            insert_meta(database, key, value)

    def kept(self, key: str) -> Any:
        """What `keep` was given last; None where there is nothing."""
        found = self._database.one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if found is None else json.loads(found)

    def failure(self, kind: str, text: str, step: int | None = None) -> Path | None:
        """Keep `text` (a traceback, with what caused it) in a file under failures/ and record an error event.

        Returns the file; None where there are 100 of this `kind` already, so that only the event is kept.
        """
        name = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") or "failure"
        directory = self.path / FAILURES
        files.make_directory(directory)
        taken = [p.stem.removeprefix(name + "-") for p in directory.glob(f"{name}-*.txt")]
        number = max((int(n) for n in taken if n.isdecimal()), default=0) + 1
        file = directory / f"{name}-{number:03}.txt" if number <= MOST_FAILURES else None
        if file is not None:
            files.write_text(file, text)
        where = {} if file is None else {"file": f"{FAILURES}/{file.name}"}
        self.event("error", f"{kind}: {text.strip().rpartition(chr(10))[2]}", step, **where)
        return file

    def reject(self, row: Mapping[str, Any]) -> None:
        """Append a skipped data row, with the reason, to rejected.jsonl; what JSON does not have (a time) as text."""
        files.append_json_line(self.path / REJECTED, _worded(row))

    # The end

    def finish(self, **summary: Any) -> None:
        """Say that the run is complete.  `summary`: plain values for the report (see `gro.runs.report`)."""
        with self._database.transaction("finish") as database:
            insert_meta(database, "finished", {"time": time.time(), "summary": plain(summary)})
            insert_event(database, "info", "finished", None, {})

    def close(self) -> None:
        """Close the database and give up the directory.  Rollouts of a step that was not recorded are dropped."""
        if self._session is None:
            return
        with suppress(GroError), self._database.transaction("close") as database:
            database.execute("UPDATE sessions SET closed = ? WHERE id = ?", (time.time(), self._session))
        self._session = None
        self._database.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(GroError):  # the error that ended the run matters more than one in recording it
                if isinstance(error, Exception):
                    self.failure("stopped", "".join(traceback.format_exception(kind, error, where)))
                else:
                    self.event("warning", f"stopped by {type(error).__name__}")
        self.close()

    # Opening

    def _check(
        self,
        before: Mapping[str, Any],
        config: Mapping[str, Any],
        may_differ: Collection[str],
        rounding: Collection[str],
    ) -> None:
        """Refuse a finished run and a run with other settings."""
        if finished := self._database.one("SELECT value FROM meta WHERE key = 'finished'"):
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(json.loads(finished)["time"]))
            changes = "; ".join(differences(before, config, may_differ))
            raise GroError(
                f"{self.path} holds a finished run (last step {self.last_step}, finished {when})"
                f"{changes and ' of other settings: ' + changes}; choose another directory"
            )
        started = self.last_step is not None or any((self.path / name).exists() for name in (CHECKPOINTS, STATE))
        if started and (changes := differences(before, config, may_differ)):
            raise GroError(
                f"{self.path} holds another run: {'; '.join(changes)}. Use the same settings to continue it, or choose "
                "another directory"
            )
        if started:
            others = [key for key in may_differ if key not in rounding]
            for change in differences(before, config, others):
                self.notices.append(f"the continuation is not exact to the last bits: {change}")
        if plain(config) != before:
            files.write_yaml(self.path / CONFIG, config)

    def _begin_session(self, swept: Sequence[Path]) -> None:
        """Note who writes from now on, and what the session before left behind."""
        previous = self._database.one("SELECT versions FROM sessions ORDER BY id DESC LIMIT 1")
        here = versions()
        notes: list[tuple[Level, str, dict[str, Any]]] = [("info", "started", {})]
        if previous is not None:
            notes = [("info", f"continued; step {self.last_step} is the last recorded", {})]
            if changed := differences(json.loads(previous), here):
                self.notices.append("exact continuation is not promised: " + "; ".join(changed))
        for notice in self.notices:
            notes.append(("warning", notice, {}))
        if self._lock.predecessor is not None:
            message = f"took over from {self._lock.predecessor}, which ended without closing the run"
            notes.append(("warning", message, {}))
        if swept:
            names = [path.relative_to(self.path).as_posix() for path in swept]
            notes.append(("warning", f"removed what was half written: {', '.join(names)}", {"files": names}))
        with self._database.transaction("open") as database:
            self._session = database.execute(
                "INSERT INTO sessions (opened, pid, host, versions) VALUES (?, ?, ?, ?)",
                (time.time(), os.getpid(), socket.gethostname(), json.dumps(here)),
            ).lastrowid
            for level, message, data in notes:
                insert_event(database, level, message, None, data)


def _sweep(directory: Path) -> list[Path]:
    """Of the run itself; runs inside it are swept when they are opened."""
    return [path for name in ("", CHECKPOINTS, STATE, FAILURES) for path in files.sweep(directory / name)]


def _worded(value: Any) -> Any:
    """A value of a data file, with text in the place of what JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _worded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_worded(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _create(directory: Path) -> None:
    """Make the directory, or refuse one that holds something else."""
    files.make_directory(directory)
    with files.explained("read", directory):
        if not (directory / CONFIG).exists():
            names = sorted(p.name for p in directory.iterdir())
            foreign = [name for name in names if name not in _OURS and not name.startswith(".")]
            if foreign:
                shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
                raise GroError(f"{directory} is not empty and holds no run ({shown}); choose another directory")
