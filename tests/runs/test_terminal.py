from __future__ import annotations

import io
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gro.runs.terminal import (
    PatientStream,
    console,
    duration,
    number,
    printable,
    resample,
    samples_table,
    sparkline,
)


@given(st.text(st.characters()))
def test_nothing_that_acts_is_left(text: str) -> None:
    for c in printable(text):
        assert c in "\n\u200c\u200d" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    printable(text).encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\r\nb\rc", "a\nb\\rc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b2J\x00\ud800", "\\x9b2J\\x00\\ud800"),
        ("日本\té 👨‍👩‍👧 x²", "日本    é 👨‍👩‍👧 x²"),
    ],
)
def test_what_acts_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (72, "1m12s"), (3600, "1h00m"), (90061, "1d01h"), (math.nan, "?"), (-5, "0s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12344, "0.1234"), (5230.4, "5230"), (0.0, "0"), (-1.5, "-1.5"), (3.1e-5, "3.10e-05"), (2.5e7, "2.50e+07")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
    assert number(math.nan) == "nan"


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7.0, math.nan, 0.0]) == "█ ▁"
    assert sparkline([]) == ""
    assert sparkline([math.nan, math.inf]) == "  "
    assert len(sparkline([2.0] * 1000, width=40)) == 40
    assert sparkline([0.0] * 500 + [1.0] * 500, width=4) == "▁▁██"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 60))
def test_resampling_keeps_the_mean_and_every_value(values: list[float], width: int) -> None:
    points = resample(values, width)
    assert len(points) == min(width, len(values))
    sizes = [(i + 1) * len(values) // len(points) - i * len(values) // len(points) for i in range(len(points))]
    total = math.fsum(point * size for point, size in zip(points, sizes, strict=True))
    assert total == pytest.approx(math.fsum(values), rel=1e-9, abs=1e-6)


def test_samples_are_text_and_nothing_else() -> None:
    out = io.StringIO()
    rows = [
        {"prompt": "[bold]1+1=[/bold]", "after": "\x1b]0;owned\x07[link=http://x]2", "right": True, "p": 0.25},
        {"prompt": "x" * 50, "after": "[/nonsense]", "right": False},
    ]
    Console(file=out, width=120, force_terminal=True, color_system="truecolor").print(
        samples_table(rows, "A [red]title", most=40)
    )
    text = out.getvalue()
    assert "[bold]1+1=[/bold]" in text
    assert "\\x1b]0;owned\\x07[link=http://x]2" in text
    assert "[/nonsense]" in text
    assert "A [red]title" in text
    assert "x" * 40 + "…" in text
    assert "✓" in text
    assert "✗" in text
    assert "\x1b]" not in text


@pytest.mark.fault("P10")
def test_a_stream_of_few_characters_or_none_at_all() -> None:
    raw = io.BytesIO()
    latin = PatientStream(io.TextIOWrapper(raw, "ascii"))
    latin.write("━ ok")
    latin.flush()
    assert raw.getvalue() == b"? ok"
    closed = io.StringIO()
    closed.close()
    stream = PatientStream(closed)
    stream.write("x")
    stream.flush()
    assert stream.broken
    assert not stream.isatty()


def test_the_console_has_no_markup() -> None:
    out = io.StringIO()
    console(out).print("[red]x[/red] :smile:")
    assert out.getvalue() == "[red]x[/red] :smile:\n"
