"""Rows and their exact places in files of every format, and every fault of a file by name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gro.data._lines import MAX_ROW_BYTES
from gro.data.files import file_sha256, read_rows
from gro.errors import DataError


def rows_and_faults(path: Path) -> tuple[list[tuple[int, Any]], list[DataError]]:
    faults: list[DataError] = []
    return [(r.number, dict(r.fields)) for r in read_rows(path, faults.append)], faults


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    rows = [{"q": "eins", "a": "1"}, {"q": 'zwei, "2"\nund', "a": "é🙂"}]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    files = {
        "r.jsonl": (lines, [1, 2]),
        "r.json": (json.dumps(rows, indent=2), [1, 2]),
        "lines.json": (lines, [1, 2]),
        "r.csv": ('q,a\r\neins,1\r\n"zwei, ""2""\nund",é🙂\r\n', [2, 3]),
        "r.parquet": (None, [1, 2]),
    }
    for name, (content, numbers) in files.items():
        path = tmp_path / name if content is None else written(tmp_path, name, content)
        found, faults = rows_and_faults(path)
        assert not faults
        assert [n for n, _ in found] == numbers, name
        assert [r for _, r in found] == rows, name


@pytest.mark.fault("D1")
def test_a_byte_order_mark_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path, "r.jsonl", b'\xef\xbb\xbf{"a": "1"}\n\n  \r\n{"a": "2"}')
    assert rows_and_faults(path) == ([(1, {"a": "1"}), (4, {"a": "2"})], [])
    path = written(tmp_path, "r.csv", b"\xef\xbb\xbfa\n1\n\n2\n")
    assert rows_and_faults(path) == ([(2, {"a": "1"}), (4, {"a": "2"})], [])


GOOD = '{"p": "x"}\n'

LINE_FAULTS = {
    # The third of five lines is bad, in this way; line, column, field, and words of the message.
    "not json": ('{"p": x}', 7, None, "invalid JSON"),
    "single quotes": ("{'p': 'x'}", 2, None, "double quotes"),
    "an array": ('[{"p": "x"}', 12, None, "invalid JSON"),
    "a number": ("3", None, None, "a number; expected an object"),
    "null": ("null", None, None, "null; expected an object"),
    "NaN": ('{"p": NaN}', None, None, "NaN; expected a finite number"),
    "Infinity": ('{"p": [-Infinity]}', None, None, "-Infinity"),
    "overflow": ('{"p": 1e999}', None, None, "1e999, which overflows"),
    "a huge integer": ('{"p": ' + "9" * 5000 + "}", None, None, "an integer of 5000 digits"),
    "the same key twice": ('{"p": "x", "q": 1, "p": "y"}', None, "p", "the same key twice"),
    "nested twice": ('{"q": {"k": 1, "k": 2}}', None, "k", "the same key twice"),
    "a lone surrogate": (r'{"p": "x", "q": ["a\ud800"]}', None, "q", "lone surrogate U+D800 at character 2"),
    "an escaped NUL": (r'{"p": "ab\u0000"}', None, "p", "NUL character at character 3"),
    "a key that is no text": (r'{"\udfff": 1}', None, None, "lone surrogate U+DFFF"),
    "too deep for the parser": ('{"p": ' + "[" * 100_000 + "]" * 100_000 + "}", None, None, "nesting deeper"),
    "too deep for the rest": ('{"p": ' + "[" * 100 + "]" * 100 + "}", None, "p", "nesting deeper than 64"),
    "a control character": ('{"p": "a\tb"}', 9, None, "invalid JSON (Invalid control character"),
}


@pytest.mark.fault("D1", "D13")
@pytest.mark.parametrize("name", LINE_FAULTS)
def test_a_bad_line_is_named_and_does_not_stop_the_others(tmp_path: Path, name: str) -> None:
    bad, column, field, words = LINE_FAULTS[name]
    found, faults = rows_and_faults(written(tmp_path, "r.jsonl", GOOD * 2 + bad + "\n" + GOOD * 2))
    assert [n for n, _ in found] == [1, 2, 4, 5]
    (fault,) = faults
    assert (fault.line, fault.column, fault.field) == (3, column, field)
    assert f"{tmp_path}/r.jsonl, line 3" in str(fault)
    assert words in str(fault)


def test_a_surrogate_pair_and_an_escaped_backslash_are_good(tmp_path: Path) -> None:
    path = written(tmp_path, "r.jsonl", r'{"p": "\ud83d\ude42", "q": "\\u0000 \\ud800"}')
    assert rows_and_faults(path)[0] == [(1, {"p": "🙂", "q": r"\u0000 \ud800"})]


@pytest.mark.fault("D1")
def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    found, faults = rows_and_faults(written(tmp_path, "r.jsonl", b'{"p": "\xc3\xa9\xff"}\n{"p": "\0"}\n{"p": "x"}'))
    assert found == [(3, {"p": "x"})]
    assert [(f.line, f.column) for f in faults] == [(1, 9), (2, 8)]
    assert "the byte 0xff; expected UTF-8" in str(faults[0])
    assert "a NUL byte" in str(faults[1])


@pytest.mark.fault("D1")
def test_a_truncated_last_line_has_its_own_message(tmp_path: Path) -> None:
    found, (fault,) = rows_and_faults(written(tmp_path, "r.jsonl", GOOD + '{"p": "the sky is'))
    assert len(found) == 1
    assert (fault.line, fault.found) == (2, "a truncated last line")
    assert "cut off" in fault.fix
    # The same bytes with a line feed were not cut off by accident.
    _, (fault,) = rows_and_faults(written(tmp_path, "r.jsonl", GOOD + '{"p": "the sky is\n'))
    assert fault.found.startswith("invalid JSON")


@pytest.mark.fault("D13")
def test_a_row_of_ten_megabytes_is_refused_without_being_kept(tmp_path: Path) -> None:
    huge = '{"p": "' + "x" * (MAX_ROW_BYTES + 100) + '"}\n'
    found, (fault,) = rows_and_faults(written(tmp_path, "r.jsonl", GOOD + huge + GOOD))
    assert [n for n, _ in found] == [1, 3]
    assert fault.line == 2
    assert "more than 8 MiB" in fault.found
    found, (fault,) = rows_and_faults(written(tmp_path, "r.csv", "p\nx\n" + huge.replace('"', "") + "y\n"))
    assert [n for n, _ in found] == [2, 4]
    assert fault.line == 3
    rows = [{"p": "x"}, {"p": "y" * MAX_ROW_BYTES}, {"p": "z"}]
    found, (fault,) = rows_and_faults(written(tmp_path, "r.json", json.dumps(rows)))
    assert [n for n, _ in found] == [1, 3]
    assert (fault.row, "more than 8 MiB" in fault.found) == (2, True)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    for name in ("r.jsonl", "r.json", "r.csv"):
        path = written(tmp_path, name, '[{"p": "x"}]'.encode(encoding))
        with pytest.raises(DataError, match=r"line 1: found UTF-16 text; expected UTF-8.*iconv"):
            list(read_rows(path))


ARRAY_FAULTS = {
    # A file, the rows that are read, and row, line and column of what is wrong.
    "cut off in a row": ('[{"p": 1},\n {"p": ', [1], (2, 2, 8), "a truncated file"),
    "cut off between rows": ('[{"p": 1}', [1], (1, 1, 10), "a truncated file"),
    "cut off after a comma": ('[{"p": 1},', [1], (2, 1, 11), "a truncated file"),
    "no comma": ('[{"p": 1}\n{"p": 2}]', [1], (1, 2, 1), "'{' after a row"),
    "syntax": ('[{"p": 1},\n{"p" 2}, {}]', [1], (2, 2, 6), "invalid JSON"),
    "not an object": ('[{"p": 1},\n 7, {"p": 2}]', [1, 3], (2, 2, 2), "a number; expected an object"),
    "NaN": ('[{"p": 1}, {"p": NaN}, {"p": 2}]', [1, 3], (2, 1, 12), "NaN"),
    "a huge integer": ('[{"p": 1}, {"p": ' + "1" * 5000 + '}, {"p": 2}]', [1, 3], (2, 1, 12), "5000 digits"),
    "more behind": ('[{"p": 1}]\n[{"p": 2}]', [1], (1, 1, 11), "text after the array"),
    "too deep": ('[{"p": 1}, {"p": ' + "[" * 99_999 + "]" * 99_999 + "}]", [1], (2, 1, 12), "nesting deeper"),
}


@pytest.mark.fault("D1", "D13")
@pytest.mark.parametrize("name", ARRAY_FAULTS)
def test_faults_of_a_json_array(tmp_path: Path, name: str) -> None:
    text, numbers, place, words = ARRAY_FAULTS[name]
    found, (fault,) = rows_and_faults(written(tmp_path, "r.json", text))
    assert [n for n, _ in found] == numbers
    assert (fault.row, fault.line, fault.column) == place
    assert words in str(fault)


@pytest.mark.parametrize("text", ["", "   ", '"text"', "7", "nul"])
def test_json_without_an_array(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="expected an array of objects"):
        list(read_rows(written(tmp_path, "r.json", text)))


def test_records_of_a_csv_file(tmp_path: Path) -> None:
    text = 'p,q\n1,2\n3\n"a\nb",4\n5,6,7\nxy,"8" z\n9,10\n"never closed,1\n2,3\n'
    found, faults = rows_and_faults(written(tmp_path, "r.csv", text))
    assert found == [(2, {"p": "1", "q": "2"}), (4, {"p": "a\nb", "q": "4"}), (8, {"p": "9", "q": "10"})]
    assert [f.line for f in faults] == [3, 6, 7, 9]
    assert "1 fields; expected 2" in str(faults[0])
    assert "3 fields; expected 2" in str(faults[1])
    assert "malformed record" in str(faults[2])
    assert "a quote that is never closed" in str(faults[3])


@pytest.mark.fault("D1")
@pytest.mark.parametrize("bad", [b"\0", b"\xff", b"x" * MAX_ROW_BYTES], ids=["NUL", "no UTF-8", "8 MiB"])
def test_the_middle_of_a_bad_record_is_not_taken_for_a_row(tmp_path: Path, bad: bytes) -> None:
    text = b'p,q\n1,2\n"one\ntwo' + bad + b',2\nthree,3\nfour",4\n5,6\n'
    found, (fault,) = rows_and_faults(written(tmp_path, "r.csv", text))
    assert found == [(2, {"p": "1", "q": "2"}), (7, {"p": "5", "q": "6"})]
    assert fault.line == 4
    assert "goes on to line 6" in str(fault)
    # The first line of the text, with the quote that begins it.
    found, (fault,) = rows_and_faults(written(tmp_path, "r.csv", text.replace(b"one\n", b"")))
    assert [n for n, _ in found] == [2, 6]
    assert (fault.line, "goes on to line 5" in str(fault)) == (3, True)
    with pytest.raises(DataError, match="line 1"):
        list(read_rows(written(tmp_path, "r.csv", b"p,q" + bad + b"\n1,2\n"), [].append))


def test_nothing_is_read_behind_a_record_whose_end_is_unknown(tmp_path: Path) -> None:
    found, (fault,) = rows_and_faults(written(tmp_path, "r.csv", 'p,q\n1,2\n"a" b,"c\nd,e\nf",g\n3,4\n'))
    assert found == [(2, {"p": "1", "q": "2"})]
    assert "line 3: found a malformed record" in str(fault)
    assert "nothing behind line 3 is read" in str(fault)


@pytest.mark.parametrize(
    ("header", "words"), [("p,q,p", "the same column twice"), ("p;q", "semicolons"), ("p\tq", "tabs")]
)
def test_headers_that_cannot_be_meant(tmp_path: Path, header: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_rows(written(tmp_path, "r.csv", header + "\n1,2,3\n")))


def test_a_long_field_of_csv_is_read(tmp_path: Path) -> None:
    long = "x" * 200_000  # The csv module's own limit is 131,072.
    assert rows_and_faults(written(tmp_path, "r.csv", f"p\n{long}\n"))[0] == [(2, {"p": long})]


def test_parquet_values_that_have_no_python_form(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"p": text, "q": [1, 2, 3]}), tmp_path / "r.parquet")
    found, (fault,) = rows_and_faults(tmp_path / "r.parquet")
    assert found == [(1, {"p": "a", "q": 1}), (3, {"p": "c", "q": 3})]
    assert (fault.row, fault.field) == (2, "p")
    assert "cannot be read" in fault.found


def test_parquet_is_numbered_over_slices(tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": list(range(1000))}), tmp_path / "r.parquet", row_group_size=300)
    found, _ = rows_and_faults(tmp_path / "r.parquet")
    assert found == [(i + 1, {"i": i}) for i in range(1000)]


class _Opaque(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.string(), "gro.test.opaque")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> _Opaque:
        return cls()


@pytest.mark.fault("D16")
def test_parquet_that_is_refused(tmp_path: Path) -> None:
    pa.register_extension_type(_Opaque())
    try:
        column = pa.ExtensionArray.from_storage(_Opaque(), pa.array(["x"]))
        pq.write_table(pa.table({"p": column}), tmp_path / "ext.parquet")
        with pytest.raises(DataError, match=r"field 'p': found the Arrow extension type.*never loaded"):
            list(read_rows(tmp_path / "ext.parquet"))
    finally:
        pa.unregister_extension_type("gro.test.opaque")
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"p": ["x" * 1000] * 100}), whole, compression="none", write_page_checksum=True)
    content = bytearray(whole.read_bytes())
    with pytest.raises(DataError, match="a damaged Parquet file"):
        list(read_rows(written(tmp_path, "cut.parquet", bytes(content[:-20]))))
    content[300] ^= 1  # One bit of the text: only the page's checksum can tell.
    with pytest.raises(DataError, match="a damaged Parquet file"):
        list(read_rows(written(tmp_path, "flipped.parquet", bytes(content))))


@pytest.mark.fault("D15", "D16")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("script.py", "never executed"),
        ("rows.pkl", "Pickle"),
        ("rows.jsonl.gz", "Unpack"),
        ("rows.arrow", "'.arrow'; expected a .jsonl, .json, .csv or .parquet"),
        ("rows", "without an extension"),
        ("missing.jsonl", "no such file"),
    ],
)
def test_what_is_not_read(tmp_path: Path, name: str, words: str) -> None:
    if not name.startswith("missing"):
        written(tmp_path, name, "raise SystemExit(3)")
    with pytest.raises(DataError, match=words):
        list(read_rows(tmp_path / name))


@pytest.mark.fault("D16")
def test_folders_pipes_and_files_under_a_wrong_name(tmp_path: Path) -> None:
    written(tmp_path, "load.py", "raise SystemExit(3)")
    written(tmp_path, "part.jsonl", GOOD)
    with pytest.raises(DataError, match=r"a folder.*part\.jsonl.*load\.py in it is never executed"):
        list(read_rows(tmp_path))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="pipe"):
        list(read_rows(tmp_path / "pipe.jsonl"))
    pq.write_table(pa.table({"p": ["x"]}), tmp_path / "really.csv")
    with pytest.raises(DataError, match=r"a Parquet file.*\.parquet"):
        list(read_rows(tmp_path / "really.csv"))
    lfs = written(tmp_path, "lfs.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="Git LFS pointer"):
        list(read_rows(lfs))


def test_without_a_reporter_the_first_bad_row_is_raised(tmp_path: Path) -> None:
    reader = read_rows(written(tmp_path, "r.jsonl", GOOD + "bad\n" + GOOD))
    assert next(reader).number == 1
    with pytest.raises(DataError, match="line 2, column 1"):
        next(reader)


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "r.jsonl", GOOD)
    assert file_sha256(path) == hashlib.sha256(GOOD.encode()).hexdigest()
    with pytest.raises(DataError, match="cannot be read"):
        file_sha256(tmp_path / "absent.jsonl")
