"""Every row of a data set looked at before anything is learnt from it, and a report of all that is wrong."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from gro.data._lines import Row
from gro.data.files import content_sha256, read_rows
from gro.data.layout import Layout, detect
from gro.data.rows import Example, parse_row
from gro.data.spec import DataSpec, Kind, Piece, Text, Turn
from gro.errors import DataError

SHOWN = 20
"""Problems kept to be shown; all of them are counted."""
_PEEK = 200
"""Rows from whose columns the dataset type is told."""

Reject = Callable[[DataError, Mapping[str, Any] | None], None]
"""Told of every row that is not used: why, and its fields where it could be read."""


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What was found.  `str()` of it is for people."""

    files: tuple[tuple[str, str], ...]
    """Path and SHA-256 of each."""
    kind: Kind
    rows: int
    """Rows looked at, in the range asked for."""
    bad: int
    """Rows that cannot be used."""
    faults: tuple[tuple[str, int], ...] = ()
    """What is wrong and how often, the most frequent first."""
    problems: tuple[DataError, ...] = ()
    """The first of them in full."""
    duplicates: int = 0
    """Rows that say the same as an earlier one."""
    duplicate_rows: tuple[tuple[int, int], ...] = ()
    """The first of them as (row, the earlier row), counted from 0 over all files."""
    named: int = 0
    """Rows that spell out the name of a special token; it stayed text."""
    named_rows: tuple[int, ...] = ()
    forced: int = 0
    """Rows where a token would have straddled the seam between prompt and completion."""
    forced_rows: tuple[int, ...] = ()
    forced_example: str = ""
    """The tokens there, together and as they are used."""
    bridged: int = 0
    """Rows whose prompt the chat template does not render as the beginning of the whole conversation."""
    bridged_rows: tuple[int, ...] = ()
    truncated: int = 0
    """Completions cut at max_length."""
    overlong: int = 0
    """Rows left out because of max_length, as asked for."""
    trained_tokens: tuple[int, ...] = ()
    """How many rows have fewer than 1, 2, 4, 8, 16, … tokens that carry loss, each counted once."""
    longest: int = 0
    """Most tokens of a prompt with one of its completions."""

    @property
    def used(self) -> int:
        """Rows that are learnt from."""
        return self.rows - self.bad - self.overlong

    def refuse(self) -> DataError:
        """One error for all that is wrong: the first problem in full, then the others."""
        first, others = self.problems[0], [str(p) for p in self.problems[1:10]]
        lines = [f"{self.bad} of {self.rows} rows cannot be used; on_bad: skip would leave them out."]
        lines += [f"  {count} × {fault}" for fault, count in self.faults[:10]]
        return DataError(
            first.file,
            line=first.line,
            row=first.row,
            column=first.column,
            field=first.field,
            found=first.found,
            expected=first.expected,
            fix=first.fix,
            more="\n".join(lines + others),
        )

    def __str__(self) -> str:
        lines = [f"{path}  sha256 {digest[:16]}…" for path, digest in self.files]
        lines.append(f"{self.kind}: {self.rows} rows, {self.used} used, {self.bad} that cannot be used")
        lines += [f"  {count} × {fault}" for fault, count in self.faults]
        lines += [f"  {problem}" for problem in self.problems]
        notes = (
            (self.overlong, "rows left out, longer than max_length", ()),
            (self.truncated, "completions cut at max_length", ()),
            (self.duplicates, "rows that repeat an earlier one", self.duplicate_rows),
            (self.named, "rows that spell out a special token, kept as text", self.named_rows),
            (self.forced, "rows with a token boundary forced between prompt and completion", self.forced_rows),
            (self.bridged, "rows put behind a prompt that the template renders otherwise", self.bridged_rows),
        )
        lines += [f"  {n} {what}" + (f" (first: {first[:5]})" if first else "") for n, what, first in notes if n]
        lines += [f"    the first: {self.forced_example}"] if self.forced_example else []
        if self.trained_tokens:
            lines.append(f"  tokens with loss per row: {_histogram(self.trained_tokens)}; longest row {self.longest}")
        return "\n".join(lines)


def _histogram(counts: tuple[int, ...]) -> str:
    spans = ["0"] + [f"{2 ** (i - 1)}–{2**i - 1}" if i > 1 else "1" for i in range(1, len(counts))]
    return ", ".join(f"{span}: {n}" for span, n in zip(spans, counts, strict=True) if n)


@dataclass(slots=True)
class Tally:
    """A report in the making."""

    spec: DataSpec
    reject: Reject | None = None
    kind: Kind = "auto"
    rows: int = 0
    bad: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[DataError] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)
    duplicates: int = 0
    duplicate_rows: list[tuple[int, int]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    """What encoding adds, under the report's names."""

    def problem(self, error: DataError, fields: Mapping[str, Any] | None = None) -> None:
        """A row that cannot be used."""
        self.bad += 1
        # Distinct faults are few, but a field's name may come from the data.
        if error.kind in self.faults or len(self.faults) < 1000:
            self.faults[error.kind] += 1
        if len(self.problems) < SHOWN:
            self.problems.append(error)
        if self.reject is not None:
            self.reject(error, fields)

    def met(self, example: Example) -> None:
        """A good row: has it been seen before?"""
        digest = row_digest(example)
        earlier = self.seen.setdefault(digest, example.index)
        if earlier != example.index:
            self.duplicates += 1
            if len(self.duplicate_rows) < SHOWN:
                self.duplicate_rows.append((example.index, earlier))

    def report(self, files: tuple[str, ...] | None = None) -> ScanReport:
        """What was found so far; `files`: those hashed, if not the spec's."""
        return ScanReport(
            files=tuple((path, content_sha256(path)) for path in (self.spec.paths if files is None else files)),
            kind=self.kind,
            rows=self.rows,
            bad=self.bad,
            faults=tuple(self.faults.most_common()),
            problems=tuple(self.problems),
            duplicates=self.duplicates,
            duplicate_rows=tuple(self.duplicate_rows),
            **self.notes,
        )


def scan(spec: DataSpec, reject: Reject | None = None) -> ScanReport:
    """Reads and understands every row, without a tokenizer.  Raises only for what concerns a whole file or column."""
    tally = Tally(spec, reject)
    for _ in examples(spec, tally):
        pass
    return tally.report()


def examples(spec: DataSpec, tally: Tally) -> Iterator[Example]:
    """The rows in the range asked for that can be understood; the others go to the tally.

    A `DataError` is raised for what concerns a whole file or the columns, and where there are no rows.
    """
    rows = _numbered(spec, tally)
    peeked: list[tuple[int, Row]] = []
    for item in rows:
        peeked.append(item)
        if len(peeked) == _PEEK:
            break
    if not peeked:
        if tally.bad:
            raise tally.report().refuse()
        where = f" from {spec.start} on" if spec.start else ""
        raise DataError(spec.paths[0], found=f"no rows{where}", expected="at least one")
    columns = [name for _, row in peeked for name in row.fields]
    layout: Layout = detect(columns, spec)
    tally.kind = layout.kind
    for index, row in chain(peeked, rows):
        try:
            example = parse_row(row, index, layout)
        except DataError as e:
            tally.problem(e, row.fields)
            continue
        tally.met(example)
        yield example


def _numbered(spec: DataSpec, tally: Tally) -> Iterator[tuple[int, Row]]:
    """Each readable row in the range with its number over all files; unreadable ones count too."""
    index = 0

    def unreadable(error: DataError) -> None:
        nonlocal index
        if _within(spec, index):
            tally.rows += 1
            tally.problem(error)
        index += 1

    for path in spec.paths:
        for row in read_rows(path, unreadable):
            if spec.stop is not None and index >= spec.stop:
                return
            if _within(spec, index):
                tally.rows += 1
                yield index, row
            index += 1


def _within(spec: DataSpec, index: int) -> bool:
    return index >= spec.start and (spec.stop is None or index < spec.stop)


def row_digest(example: Example) -> bytes:
    """Equal for rows that say the same, whatever their other columns."""
    digest = hashlib.blake2b(digest_size=12)
    for text in (example.prompt, *example.completions):
        digest.update(b"\x1d")
        digest.update(prompt_digest(text))
    return digest.digest()


def prompt_digest(text: Text | None) -> bytes:
    """Equal for equal text or turns."""
    digest = hashlib.blake2b(digest_size=12)
    plain = "".join(p.text for p in text or () if isinstance(p, Piece))
    turns = "".join(f"\x1e{t.role}\x1f{t.content}" for t in text or () if isinstance(t, Turn))
    digest.update((plain + turns).encode())
    return digest.digest()
