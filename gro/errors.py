"""Errors whose message is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class GroError(ValueError):
    """Something the user can put right.  The message says where, what was found and what was expected."""


class Interrupted(BaseException):
    """Somebody asked a job to stop, and the same command goes on with it.  The message says from where."""

    def __init__(self, why: str, *, saved: bool = False, together: bool = False) -> None:
        """saved: the state was written first, and the message is complete.  together: all processes end by it, none
        because of another."""
        super().__init__(why)
        self.saved, self.together = saved, together


class DataError(GroError):
    """Something wrong in a data file: where it is, what was found there, what was expected, how to put it right.

    >>> DataError("a.jsonl", row=3, field="prompt", found="a number", expected="text")
    """

    def __init__(
        self,
        file: str,
        *,
        found: str,
        expected: str = "",
        fix: str = "",
        line: int | None = None,
        row: int | None = None,
        column: int | None = None,
        field: str | None = None,
        more: str = "",
    ) -> None:
        """Rows (JSON, Parquet), lines (JSONL, CSV, places in JSON) and characters of a line (`column`) count from 1.

        `expected` never quotes the data, so that equal faults can be counted.  `more` is appended on lines of its own.
        """
        self.file, self.line, self.row, self.column = file, line, row, column
        self.field, self.found, self.expected, self.fix = field, found, expected, fix
        place = [file]
        place += [f"{name} {n}" for name, n in (("row", row), ("line", line), ("column", column)) if n is not None]
        place += [f"field {field!r}"] if field is not None else []
        text = f"{', '.join(place)}: found {found}"
        text += f"; expected {expected}" if expected else ""
        text += f". {fix}" if fix else ""
        super().__init__(text + (f"\n{more}" if more else ""))

    @property
    def kind(self) -> str:
        """The fault without the place: equal for rows that have the same thing wrong in the same field."""
        wrong = f"expected {self.expected}" if self.expected else self.found
        return f"{re.sub(r'[0-9]+', '…', self.field)}: {wrong}" if self.field is not None else wrong


def in_a_line(error: BaseException) -> str:
    """The kind of an error of another library, and the first line of what it says.

    >>> in_a_line(ValueError("no\\nmore"))
    'ValueError: no'
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean …?' with the most similar of the known names, or '' where none is similar.

    >>> nearest("grop", ["gro", "grpo"])
    ", did you mean 'grpo'?"
    """
    best = closest(str(name), known)
    return "" if best is None else f", did you mean {best!r}?"


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The most similar of the known names, first one of the same letters; None where none is similar.

    cutoff: how similar at least, from 0 to 1, as `difflib` measures it.
    """
    close = difflib.get_close_matches(name, list(known), n=5, cutoff=cutoff)
    return max(close, key=lambda one: sorted(one) == sorted(name), default=None)
