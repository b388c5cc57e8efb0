"""What differs between two runs that should be one and the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from gro.runs.store import DATABASE

TIMES = ("tokens/s", "step_time", "rollout_time", "waiting_time")
"""Metrics that are measurements of time."""
_TABLES = {
    "metrics": "SELECT step, name, value FROM metrics WHERE name NOT IN (?, ?, ?, ?) ORDER BY step, name",
    "steps": "SELECT step FROM steps ORDER BY step",
    "prompts": 'SELECT step, "group", key, text, ids FROM prompts ORDER BY step, "group"',
    "rollouts": 'SELECT step, row, "group", text, ids, role, reward, rewards, finish, temperature, version'
    " FROM rollouts ORDER BY step, row",
    "tokens": 'SELECT step, row, name, "values" FROM tokens JOIN rollouts ON rollouts.id = rollout'
    " ORDER BY step, row, name",
    "warnings": "SELECT step, message, data FROM events WHERE step IS NOT NULL ORDER BY step, message",
    "kept": "SELECT key, value FROM meta WHERE key != 'finished' ORDER BY key",
}
_TIMED = {"metrics"}
_FOLDERS = ("model", "checkpoints", "state", "start", "probe", "members")
_FILES = ("reward-model.json", "rejected.jsonl")


def differences(quiet: Path, other: Path) -> list[str]:
    """One line for everything that differs: a file by its bytes, a table by its first row that is another."""
    found = [line for name in _FOLDERS for line in _folder(quiet, other, name)]
    for name in _FILES:
        found += _file(quiet / name, other / name, name)
    for database in sorted(p.relative_to(quiet) for p in quiet.rglob(DATABASE)):
        found += _database(quiet / database, other / database, str(database))
    if not (other / "report.html").is_file():
        found.append("report.html is missing")
    found += [f"{p.relative_to(other)} was left behind" for p in sorted(other.rglob(".*.tmp-*"))]
    return found


def _folder(quiet: Path, other: Path, name: str) -> list[str]:
    """Names and bytes of all files; databases of runs inside the run are compared by their content."""

    def names(run: Path) -> set[str]:
        files = (p for p in (run / name).rglob("*") if p.is_file())
        return {str(p.relative_to(run)) for p in files if not _by_content(p)}

    ours, theirs = names(quiet), names(other)
    found = [f"{path} is missing" for path in sorted(ours - theirs)]
    found += [f"{path} is there, and was not" for path in sorted(theirs - ours)]
    for path in sorted(ours & theirs):
        found += _file(quiet / path, other / path, path)
    return found


def _by_content(path: Path) -> bool:
    return path.name.startswith(DATABASE) or path.name in ("lock", "config.yaml") or "failures" in path.parts


def _file(quiet: Path, other: Path, name: str) -> list[str]:
    ours, theirs = (path.read_bytes() if path.is_file() else None for path in (quiet, other))
    return [] if ours == theirs else [f"{name} differs"]


def _database(quiet: Path, other: Path, name: str) -> list[str]:
    if not other.is_file():
        return [f"{name} is missing"]
    found = []
    for table, query in _TABLES.items():
        values = TIMES if table in _TIMED else ()
        ours, theirs = _rows(quiet, query, values), _rows(other, query, values)
        if ours != theirs:
            pairs = zip(ours, theirs, strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
            both = " and ".join(str(rows[place])[:200] if place < len(rows) else "nothing" for rows in (ours, theirs))
            found.append(f"{name}: {table} differ: {both}")
    return found


def _rows(database: Path, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()
