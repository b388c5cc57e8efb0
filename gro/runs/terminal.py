"""What goes to a terminal: a stream that outlives its reader, text made harmless, small curves, tables of samples."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_JOINERS = "\u200c\u200d"  # invisible, but emoji and several scripts are spelled with them
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls (ANSI begins with one), bidi marks, surrogates, separators


def printable(text: str, newline: str = "\n") -> str:
    r"""Model text with everything that acts instead of showing (ANSI, bidi marks, NUL, …) replaced by its escape.

    >>> printable("\x1b[2J")
    '\\x1b[2J'
    """
    out = []
    for c in text.replace("\r\n", "\n"):
        if c == "\n":
            out.append(newline)
        elif c == "\t":
            out.append("    ")
        elif unicodedata.category(c) in _INVISIBLE and c not in _JOINERS:
            out.append(c.encode("unicode_escape").decode())
        else:
            out.append(c)
    return "".join(out)


class PatientStream:
    """A text stream that swallows what can no longer be written: `gro train | head` must not stop the training.

    Once the reader is gone, the descriptor is pointed at the null device, so that a `print` in somebody's reward
    function, or Python's own flush at exit, does not fail either.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.broken = False
        """Nobody reads any more."""

    def write(self, text: str) -> int:
        """Write `text`, with characters that the stream's encoding lacks replaced; the length of `text`."""
        if not self.broken:
            try:
                self.stream.write(text)
            except UnicodeEncodeError as error:
                self.stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
            except (OSError, ValueError):  # ValueError: the stream was closed
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, or notice that nobody reads."""
        if not self.broken:
            try:
                self.stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return not self.broken and not self.stream.closed and self.stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor; raises OSError where it has none."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return self.stream.encoding or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _give_up(self) -> None:
        self.broken = True
        try:
            descriptor = self.stream.fileno()
        except (OSError, ValueError):
            return
        if not self.stream.closed:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


@contextmanager
def patient_stdout() -> Iterator[None]:
    """Within this block no `print`, whoever's it is, fails because nobody reads standard output any more."""
    before = sys.stdout
    if isinstance(before, PatientStream):
        yield
        return
    sys.stdout = PatientStream(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = before


def console(stream: TextIO | None = None) -> Console:
    """A rich console on standard output, or `stream`, that a closed pipe does not stop."""
    patient: Any = PatientStream(sys.stdout if stream is None else stream)
    return Console(file=patient, markup=False, highlight=False, emoji=False)


# Numbers


def duration(seconds: float) -> str:
    """Seconds in words, in at most two units.

    >>> duration(72)
    '1m12s'
    """
    if not math.isfinite(seconds):
        return "?"
    total = max(0, round(seconds))
    days, hours, minutes, rest = total // 86400, total // 3600 % 24, total // 60 % 60, total % 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def number(value: float) -> str:
    """A number in about four figures, as short as it can be read.

    >>> number(0.00031), number(5230.4), number(1.0)
    ('0.00031', '5230', '1')
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.2e}"


# Curves


def resample(values: Sequence[float], width: int) -> list[float]:
    """`values` as the means of at most `width` equal spans; NaN is left out of a mean and stays where it is alone."""
    size = len(values)
    width = min(width, size)
    spans = [values[i * size // width : (i + 1) * size // width] for i in range(width)]
    kept = [[v for v in span if math.isfinite(v)] for span in spans]
    return [math.fsum(span) / len(span) if span else math.nan for span in kept]


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve on one line, from the lowest value to the highest; a gap where nothing is finite.

    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█'
    """
    points = resample(values, width)
    return "".join(" " if math.isnan(level) else _BLOCKS[round(level * 7)] for level in _levels(points))


def _levels(points: Sequence[float]) -> list[float]:
    """Each point between 0 (the lowest) and 1 (the highest); all alike: 0.5."""
    finite = [p for p in points if math.isfinite(p)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    flat = high - low <= 1e-9 * max(abs(low), abs(high))  # a mean of equal values is off by a rounding
    return [math.nan if math.isnan(p) else 0.5 if flat else (p - low) / (high - low) for p in points]


# Samples


def samples_table(rows: Sequence[Mapping[str, Any]], title: str = "", most: int = 300) -> Table:
    """A table of samples with a column per key, such as prompt, before, after; text as text, whatever it holds.

    `most`: characters shown of a cell.  A bool becomes ✓ or ✗.
    """
    table = Table(title=Text(title) if title else None, title_justify="left", show_lines=False, expand=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name, ""), most) for name in columns))
    return table


def _cell(value: Any, most: int) -> Text:
    if isinstance(value, bool):
        return Text("✓", style="green") if value else Text("✗", style="red")
    if isinstance(value, float):
        return Text(number(value))
    text = str(value)
    return Text(printable(text[:most]) + ("…" if len(text) > most else ""))
