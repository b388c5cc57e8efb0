"""Commands that read runs and write pages and pictures about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gro.cli.app import app
from gro.errors import GroError

if TYPE_CHECKING:
    from gro.runs.panels import Panel, Series

Smooth = Annotated[
    float, typer.Option(help="Average over this share of a curve: 0, as recorded, to below 1.", min=0, max=0.99)
]
Every = Annotated[
    bool, typer.Option("--every", help="Also draw the metrics that have no place among the usual curves.")
]
Pictures = Annotated[Path | None, typer.Option(help="Also draw every curve into a file of its own in this folder.")]
Format = Annotated[str | None, typer.Option("--format", help="Of these files: png, svg or pdf; else png.")]
Axis = Annotated[str, typer.Option("--x", help="Draw curves over step, tokens or hours (of training).")]
SMOOTH, STEP = 0.05, "step"


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the page there, not into the run directory.")
    ] = None,
    smooth: Smooth = SMOOTH,
    axis: Axis = STEP,
    every: Every = False,
    pictures: Pictures = None,
    form: Format = None,
) -> None:
    """Write a run's report.html again, with what is known of it by now; and its curves as files for documents."""
    _check(output, pictures, form, axis)
    from gro.runs.panels import Series, panels
    from gro.runs.reader import RunReader
    from gro.runs.report import write_page

    with RunReader(run) as reader:
        series = [Series.read(reader, reader.path.name)]
        _check_recorded(series, axis)
        drawn = panels(series, smooth=smooth, every=every, x=axis)
        print(write_page(reader, drawn, output))
    if pictures is not None:
        _draw(drawn, pictures, form or "png")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders with run directories in them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the page there.")] = Path("compare.html"),
    smooth: Smooth = SMOOTH,
    axis: Axis = STEP,
    by_seed: Annotated[
        bool, typer.Option(help="Draw runs that differ only in their seed as their mean with a confidence band.")
    ] = True,
    every: Every = False,
    pictures: Pictures = None,
    form: Format = None,
) -> None:
    """Compare runs on one page: curves over each other, reward against KL, settings that differ, answers.

    What algorithms would do with one batch of data is another question: compare-objectives.
    """
    _check(output, pictures, form, axis)
    from gro.runs.compare import Comparison, write_comparison

    compared = Comparison.read(runs, by_seed=by_seed)
    _check_recorded(compared.runs, axis)
    drawn = compared.panels(smooth, every=every, x=axis)
    print(write_comparison(compared, output, drawn))
    if pictures is not None:
        _draw(drawn, pictures, form or "png")


def _check(output: Path | None, pictures: Path | None, form: str | None, axis: str) -> None:
    from gro.runs.axes import AXES
    from gro.runs.pages import check_pictures

    if axis not in AXES:
        raise GroError(f"--x: expected one of {', '.join(AXES)}, found {axis!r}")
    if output is not None and not output.absolute().parent.is_dir():
        raise GroError(f"--output: the folder {output.absolute().parent} does not exist")
    check_pictures(pictures, form or "png")
    if form is not None and pictures is None:
        raise GroError("--format: it is of the files in --pictures: name their folder")


def _check_recorded(runs: Sequence[Series], axis: str) -> None:
    from gro.runs.axes import without_axis

    if len(without_axis(runs, axis)) == len(runs):
        raise GroError(f"--x {axis}: no run here has recorded how many {axis} its steps took")


def _draw(panels: Sequence[Panel], folder: Path, form: str) -> None:
    from gro.runs.pages import write_pictures

    written = write_pictures(panels, folder, form)
    print(f"{folder}: {len(written)} pictures")
