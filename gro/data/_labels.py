"""Rows of a file of labels: what people preferred, as `gro label-export` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gro.data._lines import Row
from gro.errors import DataError, GroError
from gro.labels.export import rows
from gro.labels.store import Store, kind_of


def read_labels(path: Path) -> Iterator[Row]:
    """Columns prompt, chosen and rejected; a `DataError` where it is no such file, or nobody prefers anything yet."""
    try:
        store = Store(path, kind_of(path).name)
        try:
            found = list(rows(store, "preference"))
        finally:
            store.close()
    except GroError as error:
        raise DataError(str(path), found=f"a file that cannot be read ({error})", expected="labels") from error
    if not found:
        raise DataError(str(path), found="no label that prefers one completion to another", expected="preferences")
    for number, fields in enumerate(found, 1):
        yield Row(str(path), number, fields, "row")
