"""What all readers share: a row with its place, limits, and lines of UTF-8 that know their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gro.errors import DataError

MAX_ROW_BYTES = 8 << 20
"""A longer row is refused by name: at four bytes a token it would be two million tokens."""

Report = Callable[[DataError], None]
"""Told of every row that cannot be used."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file.

    >>> Row("a.jsonl", 3, {"question": "2+2=", "answer": "4"})
    """

    file: str
    number: int
    """Counted from 1: the line of a JSONL or CSV file where the row begins, the row of a JSON or Parquet file."""
    fields: Mapping[str, Any]
    counts: Literal["line", "row"] = "line"
    """What `number` counts."""

    def error(self, field: str | None, *, found: str, expected: str = "", fix: str = "") -> DataError:
        """The error that names this row and one of its fields."""
        line, row = (self.number, None) if self.counts == "line" else (None, self.number)
        return DataError(self.file, found=found, expected=expected, fix=fix, field=field, line=line, row=row)


@dataclass(slots=True)
class Lines:
    """The lines of a stream, decoded.  An iterator that can go on after it has raised."""

    path: Path
    stream: BinaryIO
    number: int = 0
    """Of the line last read, from 1."""
    ended: bool = True
    """Whether that line ended in a line feed."""
    quotes: int = 0
    """How many double quotes were in that line, whatever else was wrong with it."""

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self.stream.readline(MAX_ROW_BYTES + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        self.quotes = raw.count(b'"')
        if len(raw) > MAX_ROW_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = self.stream.readline(1 << 20)
                self.quotes += raw.count(b'"')
            raise self.error(f"a row of more than {MAX_ROW_BYTES >> 20} MiB", "a shorter row")
        self.ended = raw.endswith(b"\n")
        if (nul := raw.find(b"\0")) >= 0:
            raise self.error("a NUL byte", "text", column=nul + 1)
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            column = len(raw[: e.start].decode(errors="replace")) + 1
            raise self.error(f"the byte 0x{raw[e.start]:02x}", "UTF-8", column=column) from None

    def error(
        self, found: str, expected: str = "", fix: str = "", *, field: str | None = None, column: int | None = None
    ) -> DataError:
        """The error that names the line last read."""
        return DataError(
            str(self.path), line=self.number, column=column, field=field, found=found, expected=expected, fix=fix
        )


_TYPES = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


def type_name(value: Any) -> str:
    """What a person calls it: null, a number, text, a list, an object, …"""
    return "null" if value is None else _TYPES.get(type(value), f"a value of type {type(value).__name__}")
