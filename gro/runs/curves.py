"""Curves of a run: smoothed over raw, as SVG for pages and as PNG, SVG or PDF files for documents."""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gro.runs import files
from gro.runs.smoothing import smooth, thin
from gro.runs.terminal import number

if TYPE_CHECKING:  # importing matplotlib takes a second; only drawing needs it
    from matplotlib.figure import Figure

# One hue per curve, readable on white and on near-black and apart for the colour-blind (after Okabe and Ito).
COLOURS = ("#2f7ed8", "#e07b00", "#1a9e77", "#c2559c", "#8a63d2", "#a07c00")

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
    ink, grid, paper = _THEMES[theme]
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    with _style(ink, grid, title):
        figure = _draw(curves, title, xlabel, ylabel, size, span)
        files.write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=160, facecolor=paper))
    return path


def inline_svg(curves: Sequence[Curve], *, label: str, xlabel: str = "step", span: float | None = None) -> str:
    """The picture as an <svg> element that takes its ink and grid from the CSS variables --ink and --grid.

    `label`: what it shows, for who cannot see it; pictures of one page need different ones.
    """
    buffer = io.StringIO()
    with _style(_INK, _GRID, label):
        figure = _draw(curves, "", xlabel, "", (4.6, 2.5), span)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = f'<svg role="img" aria-label="{html.escape(label)}"' + svg[svg.index("<svg") + 4 :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    wanted = {name for pair in re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', svg) for name in pair}
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in wanted else "", svg)  # ids of a page are unique
    return svg.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")


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


def _draw(
    curves: Sequence[Curve],
    title: str,
    xlabel: str,
    ylabel: str,
    size: tuple[float, float],
    span: float | None,
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for i, curve in enumerate(curves):
        _draw_curve(axes, curve, COLOURS[i % len(COLOURS)], span)
    axes.grid(axis="y", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: number(value) if abs(value) >= 1000 else f"{value:.3g}")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.01)
    if title:
        axes.set_title(title, loc="left", fontweight="bold")
    if len(curves) > 1:
        widest = max(len(curve.label) for curve in curves) + 5
        columns = max(1, int(size[0] * 13) // widest)  # about 13 characters of this size to the inch
        figure.legend(
            loc="outside upper left",
            frameon=False,
            fontsize=8,
            ncols=min(columns, len(curves)),
            handlelength=1.2,
            columnspacing=1.2,
        )
    return figure


def _draw_curve(axes: Any, curve: Curve, colour: str, span: float | None) -> None:
    steps, values = np.asarray(curve.steps, dtype=np.float64), np.asarray(curve.values, dtype=np.float64)
    assert steps.shape == values.shape, (curve.label, steps.shape, values.shape)
    values = np.where(np.isfinite(values), values, np.nan)
    width = max(1.0, len(values) / 20) if span is None else span
    if len(values) < 20 or width <= 1.0:
        axes.plot(steps, values, color=colour, linewidth=1.8, label=curve.label, marker="o", markersize=3)
    else:
        axes.plot(*thin(steps, values), color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(*thin(steps, smooth(values, width)), color=colour, linewidth=1.8, label=curve.label)
