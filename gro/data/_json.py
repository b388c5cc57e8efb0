"""JSON with exact places: one object per line, or an array of objects."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gro.data._lines import MAX_ROW_BYTES, Lines, Report, Row, type_name
from gro.errors import DataError

MAX_JSON_BYTES = 1 << 30
"""A JSON array must be read whole; beyond this JSONL is the format to use."""
MAX_DEPTH = 64
"""Nesting beyond this breaks whoever prints or stores the row later."""
MAX_DIGITS = 300
"""An integer this long no longer fits a float, and reading one takes quadratic time."""

# An escape that may be half of a surrogate pair, or NUL: only then are the row's strings searched.
_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_UNFIT_CHARACTER = re.compile("[\ud800-\udfff\0]")
_TOO_DEEP = f"nesting deeper than {MAX_DEPTH} levels"
_ROW = "an object with named fields"


class _UnfitError(Exception):
    """What a hook of the decoder found; the hook does not know where it is."""

    def __init__(self, found: str, expected: str, field: str | None = None) -> None:
        super().__init__(found)
        self.found, self.expected, self.field = found, expected, field


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise _UnfitError("the same key twice in one object", "each key once", twice)
    return result


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _UnfitError(f"an integer of {len(digits)} digits", f"at most {MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _UnfitError(f"the number {digits[:40]}, which overflows", "a finite number")
    return value


def _constant(name: str) -> Any:
    raise _UnfitError(name, "a finite number or null: JSON has neither NaN nor Infinity")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
# Finds where an element ends that the other one refused.
_LENIENT = json.JSONDecoder(parse_int=len, parse_float=len)


def _checked(value: Any, text: str) -> dict[str, Any]:
    """The value, if it is an object of bounded depth whose strings can be encoded; `text` is its source."""
    if not isinstance(value, dict):
        raise _UnfitError(type_name(value), _ROW)
    if text.count("[") + text.count("{") <= MAX_DEPTH and not _SUSPECT.search(text):
        return value
    pending: list[tuple[str, Any, int]] = [(k, v, 1) for k, v in value.items()]
    pending += [("", k, 1) for k in value]
    while pending:
        field, item, depth = pending.pop()
        if isinstance(item, str):
            if bad := _UNFIT_CHARACTER.search(item):
                what = "a NUL character" if bad.group() == "\0" else f"the lone surrogate U+{ord(bad.group()):04X}"
                at = bad.start() + 1
                raise _UnfitError(f"{what} at character {at}", "text that UTF-8 can hold", field or None)
        elif isinstance(item, dict | list):
            if depth >= MAX_DEPTH:
                raise _UnfitError(_TOO_DEEP, "a flat row", field or None)
            children = [*item, *item.values()] if isinstance(item, dict) else item
            pending += [(field, child, depth + 1) for child in children]
    return value


def read_jsonl(path: Path, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """One object per line; empty lines are passed over, and a line that cannot be read does not stop the others."""
    lines = Lines(path, stream)
    text = ""
    while True:
        try:
            text = next(lines).strip(" \t\r\n")
            if text:
                yield Row(str(path), lines.number, _checked(_DECODER.decode(text), text))
        except StopIteration:
            return
        except DataError as e:
            report(e)
        except json.JSONDecodeError as e:
            report(_invalid_line(lines, text, e))
        except _UnfitError as e:
            report(lines.error(e.found, e.expected, field=e.field))
        except RecursionError:
            report(lines.error(_TOO_DEEP, "a flat row"))


def _invalid_line(lines: Lines, text: str, e: json.JSONDecodeError) -> DataError:
    expected = "one JSON object per line"
    if not lines.ended:
        fix = "The file ends in the middle of a row: it was probably cut off while it was written or copied."
        return lines.error("a truncated last line", expected, fix, column=e.pos + 1)
    fix = ""
    if text.startswith("["):
        fix = "A JSON array of objects belongs in a file whose name ends in .json."
    elif text.startswith("{'"):
        fix = "Strings in JSON stand in double quotes."
    return lines.error(f"invalid JSON ({e.msg})", expected, fix, column=e.pos + 1)


def read_json(path: Path, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """An array of objects.  After an element whose end cannot be found, nothing more is read."""
    text = _whole(path, stream)

    def fault(at: int, found: str, expected: str, field: str | None = None) -> DataError:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        return DataError(
            str(path), row=max(row, 1), line=line, column=column, field=field, found=found, expected=expected
        )

    row, at = 0, _skip(text, 0)
    if text[at : at + 1] != "[":
        found = "no array" if text[at:] else "an empty file"
        raise fault(at, found, "an array of objects, or one object per line")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        row, start = row + 1, at
        try:
            try:
                value, at = _DECODER.raw_decode(text, start)
                if at - start > MAX_ROW_BYTES:
                    raise _UnfitError(f"a row of more than {MAX_ROW_BYTES >> 20} MiB", "a shorter row")
                yield Row(str(path), row, _checked(value, text[start:at]), "row")
            except _UnfitError as e:
                report(fault(start, e.found, e.expected, e.field))
                at = _LENIENT.raw_decode(text, start)[1]
        except json.JSONDecodeError as e:
            found = f"invalid JSON ({e.msg})" if text[e.pos :].strip() else "a truncated file"
            return report(fault(e.pos, found, "an array of objects"))
        except RecursionError:
            return report(fault(start, _TOO_DEEP, "a flat row"))
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            found = f"{text[at]!r} after a row" if text[at:] else "a truncated file"
            return report(fault(at, found, "a comma or the closing bracket"))
    if text[at + 1 :].strip():
        report(fault(at + 1, "text after the array", "the end of the file"))
    return None


def _whole(path: Path, stream: BinaryIO) -> str:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        fix = "Convert it to .jsonl, which is read row by row."
        raise DataError(str(path), found=f"{size >> 20} MiB of JSON", expected="at most 1 GiB", fix=fix)
    raw = stream.read()
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        line, byte = raw[: e.start].count(b"\n") + 1, raw[e.start]
        raise DataError(str(path), line=line, found=f"the byte 0x{byte:02x}", expected="UTF-8") from None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
