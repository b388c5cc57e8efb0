"""The run directory: written by one `Run`, read by everything else; progress, curves and reports made from it."""

from __future__ import annotations

from gro.runs.compare import Comparison, write_comparison
from gro.runs.curves import plot_curve, plot_panel
from gro.runs.files import DamagedError, DiskError
from gro.runs.progress import Progress, progress
from gro.runs.reader import RunReader
from gro.runs.records import Event, RolloutRecord
from gro.runs.report import write_report
from gro.runs.store import Run

__all__ = [
    "Comparison",
    "DamagedError",
    "DiskError",
    "Event",
    "Progress",
    "RolloutRecord",
    "Run",
    "RunReader",
    "plot_curve",
    "plot_panel",
    "progress",
    "write_comparison",
    "write_report",
]
