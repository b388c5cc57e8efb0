"""CSV and Parquet with exact places."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gro.data._lines import MAX_ROW_BYTES, Lines, Report, Row
from gro.errors import DataError, in_a_line

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET_ROWS = 256
"""Rows decoded at a time, at most."""
_PARQUET_BYTES = 64 << 20
"""Of rows decoded at a time, about: a row may be megabytes."""


def read_csv(path: Path, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Comma-separated values with a header; every value is text.  A bad record does not stop the rest.

    After one whose end cannot be told nothing more is read: the middle of a text would be taken for a row.
    """
    # The limit is the process's and 128 KiB by default; it only ever grows here.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    lines = _WholeRecords(Lines(path, stream))
    records = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        line = lines.begin()
        fault: DataError | None = None
        record: list[str] = []
        try:
            record = next(records)
            fault = lines.fault
        except StopIteration:
            return
        except csv.Error as e:
            unclosed = "unexpected end" in str(e) or "field larger" in str(e)
            found = "a quote that is never closed" if unclosed else f"a malformed record ({e})"
            malformed = DataError(str(path), line=line, found=found, expected="comma-separated values")
            fault = lines.fault or malformed
        if fault is not None:
            if not header:
                raise fault
            lost = not record and lines.quotes % 2 == 1
            report(lines.explained(fault, lost))
            if lost:
                return
        elif not header:
            header = _header(path, line, record) if record else []
        elif record and len(record) != len(header):
            expected = f"{len(header)}, as in the header"
            report(DataError(str(path), line=line, found=f"{len(record)} fields", expected=expected))
        elif record:
            yield Row(str(path), line, dict(zip(header, record, strict=True)))


class _WholeRecords:
    """Lines for a reader of CSV that takes several for one record: a bad one must not end it in the middle."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.fault, self.quotes = lines, None, 0

    fault: DataError | None
    """What is wrong with the lines of this record: the first."""
    quotes: int
    """In these lines.  An odd number leaves open whether a text ends in the last of them."""

    def begin(self) -> int:
        """The number of the line at which the next record begins."""
        self.fault, self.quotes = None, 0
        return self.lines.number + 1

    def explained(self, fault: DataError, lost: bool) -> DataError:
        """With what else may be part of the record."""
        end, fix = self.lines.number, ""
        if lost:
            fix = f"Where its text ends cannot be told: nothing behind line {end} is read."
        elif end > (fault.line or end):
            fix = f"What belongs to its text goes on to line {end}."
        return DataError(
            fault.file, line=fault.line, column=fault.column, found=fault.found, expected=fault.expected, fix=fix
        )

    def __iter__(self) -> _WholeRecords:
        return self

    def __next__(self) -> str:
        try:
            text = next(self.lines)
        except DataError as e:
            self.fault = self.fault or e
            text = '"' * (self.lines.quotes % 2) + "\n"  # ends or begins a text where the line did
        self.quotes += self.lines.quotes
        return text


def _header(path: Path, line: int, record: list[str]) -> list[str]:
    names = [n.strip() for n in record]
    if twice := next((n for n in names if names.count(n) > 1), None):
        expected = "each column once"
        raise DataError(str(path), line=line, field=twice, found="the same column twice", expected=expected)
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            raise DataError(str(path), line=line, found=f"fields separated by {name}", expected="commas")
    return names


def read_parquet(path: Path, report: Report) -> Iterator[Row]:
    """The rows of a Parquet file, a slice of a row group at a time."""
    import pyarrow.parquet as pq

    name, number = str(path), 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_schema(name, file.schema_arrow)
            for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata)):
                for record in _records(batch):
                    number += 1
                    if isinstance(record, DataError):
                        expected = record.expected
                        report(DataError(name, row=number, field=record.field, found=record.found, expected=expected))
                    else:
                        yield Row(name, number, record, "row")
    except DataError:
        raise
    except Exception as e:  # A damaged file makes the reader fail in many ways, undecodable names among them.
        row = number + 1 if number else None
        raise DataError(
            name, row=row, found=f"a damaged Parquet file ({in_a_line(e)[:200]})", expected="Parquet"
        ) from e


def _rows_at_once(metadata: Any) -> int:
    """Few where rows are long: a column may hold one long value, and say a thousand times that it is that one."""
    longest = 1.0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size, packed = column.total_uncompressed_size, max(column.total_compressed_size, 1)
            longest = max(longest, 4 * size / max(group.num_rows, 1))
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                longest = max(longest, (column.data_page_offset - column.dictionary_page_offset) * size / packed)
    return max(1, min(_PARQUET_ROWS, int(_PARQUET_BYTES / longest)))


def _check_schema(name: str, schema: pa.Schema) -> None:
    import pyarrow as pa

    for field in schema:
        if isinstance(field.type, pa.BaseExtensionType):
            fix = "Extension types are never loaded; store the column as text or numbers."
            raise DataError(name, field=field.name, found=f"the Arrow extension type {field.type}", fix=fix)
    if twice := next((n for n in schema.names if schema.names.count(n) > 1), None):
        raise DataError(name, field=twice, found="the same column twice", expected="each column once")


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | DataError]:
    if batch.nbytes > MAX_ROW_BYTES:
        yield from (_bounded(batch.slice(i, 1)) for i in range(batch.num_rows))
        return
    try:
        records = batch.to_pylist()
    except (ValueError, OverflowError):
        # Some value has no Python form (invalid UTF-8, a date out of range): find it, one by one.
        records = [_record(batch, i) for i in range(batch.num_rows)]
    yield from records


def _bounded(row: pa.RecordBatch) -> dict[str, Any] | DataError:
    if row.nbytes > MAX_ROW_BYTES:
        longest = max(zip(row.schema.names, row.columns, strict=True), key=lambda column: column[1].nbytes)[0]
        found = f"a row of more than {MAX_ROW_BYTES >> 20} MiB"
        return DataError("", field=longest, found=found, expected="a shorter row")
    return _record(row, 0)


def _record(batch: pa.RecordBatch, i: int) -> dict[str, Any] | DataError:
    record: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = column[i].as_py()
        except (ValueError, OverflowError) as e:
            return DataError("", field=name, found=f"a value that cannot be read ({e})")
    return record
