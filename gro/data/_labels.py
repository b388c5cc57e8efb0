"""Rows of a file of labels: what people preferred, as `gro label-export` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gro.data._lines import Row
from gro.errors import DataError, GroError
from gro.labels.export import rows
from gro.labels.reading import Labels


def read_labels(path: Path) -> Iterator[Row]:
    """Columns prompt, chosen and rejected; a `DataError` where it is no such file, or nobody prefers anything yet."""
    try:
        with Labels(path) as labels:
            found = list(rows(labels, "preference"))
    except GroError as error:
        raise DataError(str(path), found=f"a file that cannot be read ({error})", expected="labels") from error
    if not found:
        raise DataError(str(path), found="no label that prefers one completion to another", expected="preferences")
    for number, fields in enumerate(found, 1):
        yield Row(str(path), number, fields, "row")
