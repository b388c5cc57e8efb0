"""Rows of JSONL, JSON, CSV and Parquet files, and of files of labels, each with its exact place.

Nothing in a data file is executed: no dataset script, no pickle, no Arrow extension type.  Memory is bounded by one
row (JSONL, CSV), one slice of a row group (Parquet) or the whole file (JSON, which has no other way).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from gro.data._json import read_json, read_jsonl
from gro.data._labels import read_labels
from gro.data._lines import Report, Row
from gro.data._tables import read_csv, read_parquet
from gro.errors import DataError

FORMATS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".db": "labels",
}
"""What is read, by the end of the file's name."""

_LOADABLE = "a .jsonl, .json, .csv or .parquet file, or a .db file of labels"
_BOM = b"\xef\xbb\xbf"


def read_rows(path: str | Path, on_bad: Report | None = None) -> Iterator[Row]:
    """The rows of one file, in order.

    A row that cannot be read is passed to `on_bad` and left out; without `on_bad` it is raised.  What concerns the
    whole file (missing, not UTF-8, another format) is always raised.  Everything raised is a `DataError`.
    """
    path = Path(path)
    form = file_format(path)

    def report(error: DataError) -> None:
        if on_bad is None:
            raise error
        on_bad(error)

    if form == "parquet":
        yield from read_parquet(path, report)
        return
    if form == "labels":
        yield from read_labels(path)
        return
    try:
        with path.open("rb") as stream:
            _check_encoding(path, stream)
            if form == "csv":
                yield from read_csv(path, stream, report)
            elif form == "json" and _first_byte(stream) != b"{":
                yield from read_json(path, stream, report)
            else:  # JSON lines under the name .json are common, and begin with an object.
                yield from read_jsonl(path, stream, report)
    except OSError as e:
        raise _unreadable(path, e) from e


def content_sha256(path: str | Path) -> str:
    """What a run that goes on compares: the SHA-256 of a file; of labels that of their rows, as the bytes of
    a database say little of what is in it."""
    if file_format(Path(path)) != "labels":
        return file_sha256(path)
    rows = [row.fields for row in read_labels(Path(path))]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as e:
        raise _unreadable(Path(path), e) from e


def _unreadable(path: Path, e: OSError) -> DataError:
    return DataError(str(path), found=f"a file that cannot be read ({e.strerror or e})", expected=_LOADABLE)


def file_format(path: Path) -> str:
    """The format, by the file's name; a `DataError` for anything that is not read."""
    name = str(path)
    if path.is_dir():
        raise DataError(name, found="a folder", expected=_LOADABLE, fix=_what_a_folder_holds(path))
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        if not path.exists():
            raise DataError(name, found="no such file", expected=_LOADABLE)
        if not path.is_file():
            raise DataError(name, found="a device, pipe or socket", expected=_LOADABLE)
        return FORMATS[suffix]
    fix = ""
    if suffix == ".py":
        fix = "Dataset scripts are never executed; export their rows to one of these formats."
    elif suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"):
        fix = "Pickle can run any code when it is read, and is never loaded."
    elif suffix in (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz"):
        fix = "Unpack it first."
    found = f"the file type {suffix!r}" if suffix else "a file name without an extension"
    raise DataError(name, found=found, expected=_LOADABLE, fix=fix)


def _what_a_folder_holds(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    loadable = [str(p) for p in files if p.suffix.lower() in FORMATS]
    text = f"Name the files, such as {', '.join(loadable[:3])}." if loadable else "It holds no such file."
    scripts = [p.name for p in files if p.suffix == ".py"]
    return f"{text} The dataset script {scripts[0]} in it is never executed." if scripts else text


def _check_encoding(path: Path, stream: BinaryIO) -> None:
    """Leaves the stream at the first character, behind a byte order mark."""
    head = stream.read(64)
    stream.seek(len(_BOM) if head.startswith(_BOM) else 0)
    found, expected, fix = "", "UTF-8 text", ""
    # Without a mark UTF-16 shows by its zeros: the first character is ASCII in any of these formats.
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) > 1 and (head[0] == 0) != (head[1] == 0)):
        found, fix = "UTF-16 text", "Convert it with: iconv -f UTF-16 -t UTF-8."
    elif head.startswith(b"version https://git-lfs"):
        found, fix = "a Git LFS pointer in place of the data", "Fetch the file itself with: git lfs pull."
    elif head.startswith(b"PAR1"):
        found, fix = "a Parquet file", "Its name should end in .parquet."
    elif head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        found, fix = "a compressed file", "Unpack it first."
    if found:
        raise DataError(str(path), line=1, found=found, expected=expected, fix=fix)


def _first_byte(stream: BinaryIO) -> bytes:
    start = stream.tell()
    byte = stream.read(1)
    while byte.isspace():
        byte = stream.read(1)
    stream.seek(start)
    return byte
