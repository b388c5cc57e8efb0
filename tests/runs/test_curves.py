from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.errors import GroError
from gro.runs.curves import inline_svg, look, looks, plot_curve, plot_panel, tick_labels
from gro.runs.lines import Line, Panel
from gro.runs.smoothing import smooth, thin_places

NAN = math.nan


def test_smoothing_by_hand() -> None:
    # span 3: r = 1/2.  Weights of the first: 1, 1/2, 1/4; of the second: 1/2, 1, 1/2.
    np.testing.assert_allclose(smooth([0.0, 4.0, 8.0], 3), [(2 + 2) / 1.75, (0 + 4 + 4) / 2, (2 + 8) / 1.75])
    np.testing.assert_allclose(smooth([1.0, NAN, 4.0], 3), [(1 + 1) / 1.25, (0.5 + 2) / 1.0, (0.25 + 4) / 1.25])
    np.testing.assert_array_equal(smooth([1.0, 5.0], 1), [1.0, 5.0])
    np.testing.assert_array_equal(smooth([NAN, math.inf], 3), [NAN, NAN])
    assert smooth([], 3).shape == (0,)


@given(st.lists(st.floats(-1e3, 1e3) | st.just(NAN), min_size=1, max_size=40), st.floats(1.0, 30.0))
def test_smoothing_is_its_definition(values: list[float], span: float) -> None:
    x, r = np.array(values), 1 - 2 / (span + 1)
    there = np.flatnonzero(np.isfinite(x))
    got = smooth(x, span)
    for i in range(len(x)):
        weights = np.array([r ** abs(i - j) for j in there])
        if weights.sum() > 1e-12:
            assert got[i] == pytest.approx(float(weights @ x[there] / weights.sum()), rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(-5, 5) | st.just(NAN), max_size=300), st.integers(4, 60))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    x = np.array(values, dtype=float)
    kept = thin_places(x, most)
    y = x[kept]
    assert len(kept) <= most
    assert np.all(np.diff(kept) > 0)
    if len(x):
        assert (kept[0], kept[-1]) == (0, len(x) - 1)
    if np.isfinite(x).any():
        assert (np.nanmin(y), np.nanmax(y)) == (np.nanmin(x), np.nanmax(x))


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_files_of_each_kind(tmp_path: Path, ending: str, start: bytes) -> None:
    steps = np.arange(50)
    path = plot_curve(tmp_path / f"curve.{ending}", {"reward": (steps, steps**0.5)}, title="Costs $5", theme="dark")
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(GroError):
        plot_curve(tmp_path / "absent" / "curve.png", {"reward": (steps, steps)})


def test_an_inline_picture_is_well_formed_and_takes_the_colours_of_its_page() -> None:
    hostile = '</svg><script>alert("x")</script> $\\frac{1}{$'
    steps = np.arange(2000)
    lines = (
        Line(hostile, 0, np.array([1, 2, 3]), np.array([0.1, NAN, 0.3])),
        Line("b", 7, steps, np.sin(steps), np.cos(steps), np.sin(steps) - 1, np.where(steps > 9, NAN, 2.0)),
        Line("of all", -1, steps, np.sin(steps)),
    )
    panel = Panel("key", 'a "label" <b>', hostile, lines)
    svg = inline_svg(panel)
    root = ET.fromstring(svg)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "defs", "style", "g", "path", "use", "text", "tspan", "clipPath", "rect"}
    assert root.attrib["aria-label"] == 'a "label" <b>'
    assert "width" not in root.attrib
    assert "var(--ink)" in svg
    assert "var(--grid)" in svg
    assert "#010203" not in svg
    assert "".join(root.itertext()).count(hostile) == 2  # the axis and the legend
    assert "".join(ET.fromstring(inline_svg(panel, legend=False)).itertext()).count(hostile) == 1
    assert len(svg) < 160_000  # 2,000 points are thinned
    assert inline_svg(panel) == svg  # equal input, equal bytes


def test_control_characters_of_names_are_drawn_by_their_numbers(tmp_path: Path) -> None:
    steps = np.arange(3)
    lines = tuple(Line(f"\x1b\u202e\x00{i}", i, steps, steps * 1.0) for i in (0, 1))
    panel = Panel("k", "title\x07", "x\x08", lines)
    for svg in (plot_panel(tmp_path / "x.svg", panel).read_text(), inline_svg(panel)):
        shown = "".join(ET.fromstring(svg).itertext())
        for expected in ("\\x1b\\u202e\\x000", "\\x1b\\u202e\\x001", "x\\x08"):
            assert expected in shown
    assert "title\\x07" in inline_svg(panel)


@pytest.mark.parametrize("key", ["reward", "frontier"])
def test_a_legend_names_the_lines_by_their_colours(tmp_path: Path, key: str) -> None:
    steps = np.arange(30.0)
    band = (steps - 1, steps + 1)
    lines = (
        Line("smoothed", 0, steps, steps, np.sin(steps)),
        Line("mean", 1, steps, 2 * steps, None, *band),
        Line("plain", 2, steps, 3 * steps),
    )
    svg = plot_panel(tmp_path / "x.svg", Panel(key, "", "step", lines)).read_text()
    for source, line in enumerate(lines):
        entry = svg[: svg.index(f">{line.label}<")]
        drawn = entry[entry.rindex("stroke: #") :]
        assert drawn.startswith(f"stroke: {look(source)[0]}"), line.label
        assert "opacity" not in drawn


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_equal_panels_make_equal_files(tmp_path: Path, ending: str) -> None:
    steps = np.arange(30)
    panel = Panel("reward", "Reward", "step", (Line("a", 0, steps, steps * 0.1, None, steps * 0.0, steps * 0.2),))
    first, second = (plot_panel(tmp_path / f"{name}.{ending}", panel).read_bytes() for name in "ab")
    assert first == second
    other = Panel("reward", "Reward", "step", (Line("a", 1, steps, steps * 0.1, None, steps * 0.0, steps * 0.2),))
    assert plot_panel(tmp_path / f"c.{ending}", other).read_bytes() != first


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([3.985, 3.99, 3.995, 4.0], ["3.985", "3.99", "3.995", "4"]),
        ([-0.2, -0.1, 1e-17, 0.1], ["-0.2", "-0.1", "0", "0.1"]),
        ([0.1 + 0.2, 0.6, 0.9], ["0.3", "0.6", "0.9"]),
        ([0, 1500, 3000], ["0", "1500", "3000"]),
        ([12000, 12000.5], ["12000", "12000.5"]),
        ([0.0, 2e6, 4e6], ["0", "2e+06", "4e+06"]),
        ([0.0, 8e-06], ["0", "8e-06"]),
        ([0.5], ["0.5"]),
        ([], []),
    ],
)
def test_labels_of_ticks_are_short_and_tell_them_apart(ticks: list[float], labels: list[str]) -> None:
    assert tick_labels(ticks) == labels


def test_18_runs_look_different() -> None:
    assert len({look(source) for source in range(18)}) == 18
    steps = np.array([1])
    lines = [Line("", source, steps, steps * 1.0) for source in (7, -1, 0)]
    assert looks(lines) == [look(7), ("", "4 1.5"), look(0)]  # what belongs to no run has the colour of the text
    assert looks([replace(line, source=-1) for line in lines]) == [look(0), look(1), look(2)]


def test_nothing_but_drawing_imports_matplotlib() -> None:
    code = "import sys, gro.runs, gro.runs.report; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
