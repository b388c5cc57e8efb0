"""The run directory: written by one `Run`, read by everything else; progress, curves and reports made from it."""

from __future__ import annotations

from gro.runs.curves import plot_curve
from gro.runs.files import DamagedError, DiskError
from gro.runs.progress import Progress, progress
from gro.runs.reader import RunReader
from gro.runs.records import Event, RolloutRecord
from gro.runs.report import write_report
from gro.runs.store import Run

__all__ = [
    "DamagedError",
    "DiskError",
    "Event",
    "Progress",
    "RolloutRecord",
    "Run",
    "RunReader",
    "plot_curve",
    "progress",
    "write_report",
]
