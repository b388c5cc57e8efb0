"""Commands that read a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gro.cli.app import app


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write a run's report.html again."""
    from gro.runs.report import write_report

    print(write_report(run))
