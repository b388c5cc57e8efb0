"""A run that another process owns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gro.runs import files
from gro.runs.records import Level, RolloutRecord
from gro.runs.store import FAILURES, MOST_FAILURES, Run


class SilentRun(Run):
    """Takes what a run takes and keeps none of it, but for failures."""

    def __init__(self, path: str | Path, process: int) -> None:
        self.path = Path(path).expanduser().absolute()
        self.notices = []
        self._process, self._failures = process, 0

    @property
    def last_step(self) -> int | None:
        """Nothing is recorded here."""
        return None

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Not here."""

    def record_rollouts(self, step: int, records: Sequence[RolloutRecord]) -> None:
        """Not here."""

    def event(self, level: Level, message: str, step: int | None = None, **data: Any) -> None:
        """Not here."""

    def rewind(self, step: int) -> int:
        """Nothing is recorded here."""
        return 0

    def keep(self, key: str, value: Any) -> None:
        """Not here."""

    def kept(self, key: str) -> Any:
        """Nothing is kept here."""

    def failure(self, kind: str, text: str, step: int | None = None, *, why: str = "") -> Path | None:
        """In a file as everywhere; the owner counts what its metrics tell of it."""
        self._failures += 1
        if self._failures > MOST_FAILURES:
            return None
        file = self.path / FAILURES / f"process-{self._process}-{os.getpid()}-{self._failures:03}.txt"
        files.make_directory(file.parent)
        files.write_text(file, f"{kind}\n\n{text}")
        return file

    def reject(self, row: Mapping[str, Any]) -> None:
        """Not here."""

    def finish(self, **summary: Any) -> None:
        """The owner does."""

    def close(self) -> None:
        """Nothing is open."""
