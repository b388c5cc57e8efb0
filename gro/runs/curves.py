"""Curves of a run: smoothed over raw, as SVG for pages and as PNG, SVG or PDF files for documents."""

from __future__ import annotations

import html
import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gro.runs import files
from gro.runs.axes import TOKENS, count
from gro.runs.lines import FRONTIER, Line, Panel
from gro.runs.smoothing import smooth
from gro.runs.terminal import printable

if TYPE_CHECKING:  # importing matplotlib takes a second; only drawing needs it
    from matplotlib.figure import Figure

# One hue per curve, readable on white and on near-black and apart for the colour-blind (after Okabe and Ito).
COLOURS = ("#2f7ed8", "#e07b00", "#1a9e77", "#c2559c", "#8a63d2", "#a07c00")

SOLID = "solid"
DASHES = (SOLID, "4 1.5", "1 1.2")
"""What tells the 7th line from the first, and the 13th: lengths of ink and gap in line widths."""

_MOST_MARKS = 150  # points of a path that are marked
_FEW = 20  # values of a line whose points are drawn
_WITHOUT_DATE: Mapping[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}

# Placeholders that an inline SVG replaces by CSS variables, so that one picture serves light and dark pages.
_INK, _GRID = "#010203", "#040506"
_THEMES = {"light": ("#1c2126", "#d9dee4", "#ffffff"), "dark": ("#e6e9ed", "#333b45", "#14181d")}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a picture.

    >>> Curve("reward", [1, 2, 3], [0.1, float("nan"), 0.3])
    """

    label: str
    steps: Sequence[float] | np.ndarray
    values: Sequence[float] | np.ndarray
    """As many as steps; a gap where not finite."""


Series = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]


def plot_curve(
    path: str | Path,
    curves: Sequence[Curve] | Mapping[str, Series],
    *,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "",
    theme: str = "light",
    size: tuple[float, float] = (6.4, 3.6),
    span: float | None = None,
) -> Path:
    """Draw curves into a PNG, SVG or PDF file, by the name's ending; `RunReader.metrics()` or a part of it will do.

    `theme`: light or dark.  `size`: inches.  `span`: of the smoothing, in values; None: a twentieth of the curve.
    Returns the path.  Raises DiskError where it cannot be written.
    """
    if isinstance(curves, Mapping):
        curves = [Curve(name, *series) for name, series in curves.items()]
    lines = tuple(_line(curve, span) for curve in curves)
    return plot_panel(path, Panel("", title, xlabel, lines), ylabel=ylabel, theme=theme, size=size)


def plot_panel(
    path: str | Path,
    panel: Panel,
    *,
    ylabel: str = "",
    theme: str = "light",
    size: tuple[float, float] = (6.4, 3.6),
) -> Path:
    """Draw a panel into a PNG, SVG or PDF file, by the name's ending; equal panels make equal files.

    Returns the path.  Raises DiskError where it cannot be written.
    """
    path = Path(path)
    drawn = picture(panel, path.suffix.lstrip(".").lower(), ylabel=ylabel, theme=theme, size=size)
    files.write_atomically(path, lambda file: file.write(drawn))
    return path


def picture(
    panel: Panel, form: str, *, ylabel: str = "", theme: str = "light", size: tuple[float, float] = (6.4, 3.6)
) -> bytes:
    """A panel as a PNG, SVG or PDF file.  Not for two threads at once."""
    ink, grid, paper = _THEMES[theme]
    buffer = io.BytesIO()
    with _style(ink, grid, panel.title):
        figure = _draw(panel, size, panel.title, ylabel)
        figure.savefig(buffer, format=form, dpi=160, facecolor=paper, metadata=_WITHOUT_DATE.get(form))
    return buffer.getvalue()


def inline_svg(panel: Panel, *, legend: bool = True) -> str:
    """The picture as an <svg> element that takes its ink and grid from the CSS variables --ink and --grid.

    Its title is its label, for who cannot see it.  Panels of one page need different keys.
    """
    buffer = io.StringIO()
    with _style(_INK, _GRID, panel.key or panel.title):
        figure = _draw(panel, (4.6, 2.5), legend=legend)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = f'<svg role="img" aria-label="{html.escape(printable(panel.title))}"' + svg[svg.index("<svg") + 4 :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    wanted = {name for pair in re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', svg) for name in pair}
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in wanted else "", svg)  # ids of a page are unique
    return svg.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")


def _line(curve: Curve, span: float | None) -> Line:
    steps, values = np.asarray(curve.steps, dtype=np.float64), np.asarray(curve.values, dtype=np.float64)
    assert steps.shape == values.shape, (curve.label, steps.shape, values.shape)
    values = np.where(np.isfinite(values), values, np.nan)
    width = max(1.0, len(values) / 20) if span is None else span
    if width <= 1.0:
        return Line(curve.label, -1, steps, values)
    return Line(curve.label, -1, steps, smooth(values, width), values)


def _style(ink: str, grid: str, salt: str) -> AbstractContextManager[None]:
    """matplotlib's settings within a block, for making a figure and for saving it."""
    # Of a home that cannot be written it says three times that fonts are looked for again: no news for who trains.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl

    settings: Any = {
        "text.color": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": grid,
        "grid.color": grid,
        "axes.facecolor": "none",
        "font.size": 9,
        "text.parse_math": False,  # a metric may be named with a $
        "svg.fonttype": "none",  # text stays text: it can be selected, read aloud and coloured
        "svg.hashsalt": salt or "gro",  # ids made from the content: equal input, equal bytes
    }
    return mpl.rc_context(settings)


def _draw(panel: Panel, size: tuple[float, float], title: str = "", ylabel: str = "", *, legend: bool = True) -> Figure:
    """The figure, of this size and higher where the legend has many rows."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels = [printable(line.label) for line in panel.lines] if legend and len(panel.lines) > 1 else []
    letters = int(size[0] * 13)  # of the legend's size, in the width of the figure
    columns = max(1, letters // (max(map(len, labels), default=0) + 5))
    rows = math.ceil(len(labels) / columns)
    # Margins in inches.  matplotlib could find them by drawing everything twice, in twice the time.
    left, right, bottom, top = 0.62 + 0.2 * bool(ylabel), 0.22, 0.48, 0.12 + 0.18 * rows + 0.28 * bool(title)
    width, height = size[0], size[1] + 0.18 * max(0, rows - 2)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    for line, (colour, dashes) in zip(panel.lines, looks(panel.lines), strict=True):
        if panel.key == FRONTIER and line.source >= 0:
            _draw_path(axes, line.thinned(_MOST_MARKS), colour)
        else:
            _draw_line(axes, line.thinned(), colour, dashes)
    axes.grid(axis="y", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    counts = all(np.array_equal(line.steps, np.floor(line.steps)) for line in panel.lines)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=counts, steps=[1, 2, 5, 10]))
    if panel.x == TOKENS:
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(printable(panel.x))
    axes.set_ylabel(ylabel)
    axes.margins(x=0.01)
    lowest, highest = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if lowest <= tick <= highest]
    axes.set_yticks(ticks, tick_labels(ticks))
    if title:
        figure.text(0.12 / width, 1 - 0.1 / height, printable(title), va="top", fontsize=11, fontweight="bold")
    if labels:
        axes.legend(
            handles=axes.get_legend_handles_labels()[0],
            labels=[label if len(label) < letters - 5 else label[: letters - 6] + "…" for label in labels],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.1,
            frameon=False,
            fontsize=8,
            ncols=min(columns, len(labels)),
            handlelength=1.2 if all(dashes == SOLID for _, dashes in looks(panel.lines)) else 2.6,
            columnspacing=1.2,
        )
    return figure


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Evenly spaced numbers in as few figures as tell what they are.

    >>> tick_labels([3.985, 3.99, 3.995, 4.0])
    ['3.985', '3.99', '3.995', '4']
    """
    spacing = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    values = [tick if abs(tick) > 1e-6 * spacing else 0.0 for tick in ticks]
    largest = max(map(abs, values), default=0.0)
    fewest = len(str(int(largest))) if largest < 1e6 else 1  # no exponent where there need be none
    for figures in range(fewest, 16):
        labels = [f"{value:.{figures}g}" for value in values]
        if all(abs(float(label) - value) <= 0.01 * spacing for label, value in zip(labels, values, strict=True)):
            return labels
    return [str(value) for value in values]


def looks(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Colour and dashes of each line, by its source: where none has one, by its place.

    Among lines that have a source, one that has none belongs to all of them: it has the colour of the text.
    """
    if all(line.source < 0 for line in lines):
        return [look(i) for i in range(len(lines))]
    return [look(line.source) if line.source >= 0 else ("", DASHES[1]) for line in lines]


def look(source: int) -> tuple[str, str]:
    """Colour and dashes of a run or a group of runs."""
    return COLOURS[source % len(COLOURS)], DASHES[source // len(COLOURS) % len(DASHES)]


def _draw_path(axes: Any, line: Line, colour: str) -> None:
    """Through the points in their order; the last one is larger."""
    axes.plot(line.steps, line.values, color=colour, linewidth=1, marker="o", markersize=2.5, label=line.label)
    axes.plot(line.steps[-1:], line.values[-1:], color=colour, marker="o", markersize=7)


def _draw_line(axes: Any, line: Line, colour: str, dashes: str) -> None:
    """The band below, the values before smoothing as a shadow, the line; points where there are few or it is broken."""
    import matplotlib as mpl

    style: dict[str, Any] = {"color": colour or mpl.rcParams["text.color"]}
    if line.low is not None and line.high is not None:
        axes.fill_between(line.steps, line.low, line.high, alpha=0.18, linewidth=0, **style)
    if line.raw is not None:
        axes.plot(line.steps, line.raw, linewidth=0.8, alpha=0.3, **style)
    there = np.pad(np.isfinite(line.values), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    marked = alone if len(line.values) >= _FEW or not colour else there[1:-1]
    pattern = SOLID if dashes == SOLID else (0, tuple(float(length) for length in dashes.split()))
    points = {"marker": "o", "markersize": 3, "markevery": np.flatnonzero(marked).tolist()} if marked.any() else {}
    axes.plot(line.steps, line.values, linewidth=1.8, linestyle=pattern, label=line.label, **style, **points)
