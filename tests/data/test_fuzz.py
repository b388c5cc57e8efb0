"""Mutated rows and files of every format: no other error than a DataError, none without file, row and field, none late.

The oracle is written without the library: a row that nothing can be learnt from must not be used.  The fast tests take
a few hundred rows; the same with 20,000 is marked slow.
"""

from __future__ import annotations

import copy
import csv
import datetime
import io
import json
import math
import random
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import assistant, user
from tokenizer_variants import chatml_like

from gro.data.encode import load_dataset
from gro.data.scan import scan
from gro.data.spec import DataSpec
from gro.errors import DataError

TURNS = [{"role": "system", "content": "S"}, user("A b"), assistant("C d"), user("E"), assistant("F")]
GOOD: dict[str, dict[str, Any]] = {
    "language_modeling": {"text": "Some words."},
    "messages": {"messages": TURNS},
    "prompt_only": {"prompt": "A question?", "answer": 4},
    "prompt_completion": {"prompt": "A question?", "completion": " An answer."},
    "spoken": {"prompt": TURNS[:2], "completion": TURNS[2:3]},
    "preference": {"prompt": "A question?", "chosen": " Yes.", "rejected": " No.", "margin": 1.5},
    "transcript": {
        "chosen": "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C\n\nAssistant: yes",
        "rejected": "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C\n\nAssistant: no",
    },
    "conversations": {"chosen": TURNS, "rejected": [*TURNS[:-1], assistant("G")]},
    "unpaired_preference": {"prompt": "A question?", "completion": " An answer.", "label": True},
    "rewarded": {"prompt": "A question?", "completion": " An answer.", "reward": 0.5},
    "logged": {"prompt": "A question?", "completions": [" Yes.", " No."], "rewards": [1, 0.5]},
}
KIND = {"messages": "language_modeling", "spoken": "prompt_completion", "logged": "rewarded"} | dict.fromkeys(
    ("transcript", "conversations"), "preference"
)
FLAT = [name for name, row in GOOD.items() if not any(isinstance(v, list) for v in row.values())]
"""Those that CSV can hold."""
_DEEP: list[Any] = []
for _ in range(90):
    _DEEP = [_DEEP]
ODD: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, "", " ", "\n\t", "\0", "x\0y", "<|im_end|>", "\u2028", "é🙂", "\u200b", [], {},
    [[]], [None], [{}], {"a": 1}, [user("A")], [assistant("A")], [{"role": "user"}], [{"role": "x", "content": "y"}],
    ["A"], "x" * 5000, math.nan, math.inf, -math.inf, 1e300, 10**400, "nan", "1e999", "\ud800", "a\udfffb", _DEEP,
    "\n\nHuman: A\n\nAssistant:", "\n\nAssistant: A", {"role": "user", "content": "A"}, [user(" ")], "\r\n", '"', ",",
    [user("A"), user("B")], [assistant("A"), user("B")], {"role": None}, "true", 2, [[user("A")]], "\ufeff",
]  # fmt: skip
ODD_IN_PARQUET: list[Any] = [
    b"x", b"\xff\xfe", datetime.datetime(2024, 1, 1), datetime.date(1, 1, 1), datetime.timedelta(1), Decimal("1.5"),
]  # fmt: skip
STRUCTURE = (
    "expected an object with named fields", "expected one JSON object per line", "expected UTF-8", "as in the header",
    "expected comma-separated values", "expected an array of objects", "a comma or the closing bracket",
    "expected the end of the file", "a NUL byte", "expected a flat row", "expected a finite number or null",
    "which overflows", "digits", "expected text that UTF-8 can hold", "expected each key once", "expected Parquet",
    "expected a shorter row",
)  # fmt: skip
"""What can be wrong with a row before it has fields."""


def mutated(row: dict[str, Any], rng: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """The row with one thing changed, anywhere in it."""
    row = copy.deepcopy(row)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(row)
    owner, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[key + "s"] = owner.pop(key)
    elif kind == 2 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    elif kind == 3 and isinstance(owner[key], str):
        at = rng.randrange(len(owner[key]) + 1)
        put = rng.choice(["\0", " ", "<|im_start|>", "\n\nHuman:", "\ue000", "🙂", "\ud83d"])
        owner[key] = owner[key][:at] + put + owner[key][at:]
    elif kind == 4 and rng.random() < 0.5:
        return rng.choice(odd)
    else:
        owner[key] = copy.deepcopy(rng.choice(odd))
    return row


# --- what could be learnt from ----------------------------------------------------------------------------------------


def is_text(value: Any) -> bool:
    encodable = isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
    return encodable and bool(value.strip()) and "\0" not in value


def is_number(value: Any) -> bool:
    """A finite one; CSV has only text."""
    try:
        return not isinstance(value, bool) and value is not None and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def is_spoken(value: Any, first: str, last: str) -> bool:
    """Messages, of which the first (behind a system turn) and the last are these roles'."""
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        return False
    if not all(m.get("role") in ("system", "user", "assistant") and is_text(m.get("content")) for m in value):
        return False
    roles = [m["role"] for m in value]
    roles = roles[1:] if roles[0] == "system" and first == "user" else roles
    return bool(roles) and roles[0] == first and roles[-1] == last and "system" not in roles


def is_transcript(value: Any) -> bool:
    return is_text(value) and "Human:" in value and "Assistant:" in value


def is_answer(prompt: Any, completion: Any) -> bool:
    """Text to text, messages to messages."""
    if isinstance(prompt, list):
        return is_spoken(prompt, "user", "user") and is_spoken(completion, "assistant", "assistant")
    return is_text(prompt) and is_text(completion)


def is_pair(row: dict[str, Any]) -> bool:
    sides = [row.get("chosen"), row.get("rejected")]
    if [s.strip() if isinstance(s, str) else s for s in sides[:1]] == [
        s.strip() if isinstance(s, str) else s for s in sides[1:]
    ]:
        return False
    if all(is_spoken(s, "user", "assistant") for s in sides):
        return True
    return all(is_answer(row.get("prompt", "none"), s) for s in sides)


def may_be_used(row: Any, name: str, columns: Collection[str] = ()) -> bool:
    """Independently of the library: could this row possibly be learnt from?

    columns: those of the whole file, where that is known.  A file may have no rewards, no margins.
    """
    if not isinstance(row, dict):
        return False
    columns = columns or GOOD[name]
    prompt, reward = row.get("prompt"), row.get("reward")
    match name:
        case "language_modeling":
            return is_text(row.get("text"))
        case "messages":
            return is_transcript(row.get("messages")) or is_spoken(row.get("messages"), "user", "assistant")
        case "prompt_only":
            return is_text(prompt) or is_spoken(prompt, "user", "user")
        case "preference":
            return is_pair(row) and ("margin" not in columns or is_number(row.get("margin")))
        case "transcript" | "conversations":
            return is_pair(row)
        case "logged":
            given, rewards = row.get("completions"), row.get("rewards")
            if not isinstance(given, list) or not given or not all(is_answer(prompt, g) for g in given):
                return False
            fits = isinstance(rewards, list) and len(given) == len(rewards) and all(map(is_number, rewards))
            return fits or "rewards" not in columns
        case "unpaired_preference":
            return is_answer(prompt, row.get("completion")) and str(row.get("label")).lower() in LABELS
        case "rewarded" if "reward" in columns:
            return is_answer(prompt, row.get("completion")) and is_number(reward) and abs(float(str(reward))) <= 1e6
    return is_answer(prompt, row.get("completion"))


LABELS = ("true", "false", "0", "1")


# --- files ------------------------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[Any], header: Sequence[str]) -> tuple[bytes, list[Any]]:
    """A file and what its rows say: everything as text, no columns but the header's."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else "" if value is None else json.dumps(value)

    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(header)
    said: list[Any] = []
    for row in rows:
        record = [text(row.get(k)) for k in header] if isinstance(row, dict) else [text(row)]
        if any(record):
            writer.writerow(record)
            said.append(dict(zip(header, record, strict=False)))
    return out.getvalue().encode(errors="surrogatepass"), said


def as_tables(rows: Sequence[Any]) -> list[pa.Table]:
    """As few tables as the types of the values allow; what Arrow cannot hold is left out."""
    tables: list[pa.Table] = []
    kept: list[dict[str, Any]] = []
    for row in rows:
        for together in ([*kept, row], [row]):
            if not all(isinstance(r, dict) for r in together):
                continue
            names = dict.fromkeys(k for r in together for k in r)
            try:
                table = pa.table({k: pa.array([r.get(k) for r in together]) for k in names})
                io_buffer = pa.BufferOutputStream()
                pq.write_table(table, io_buffer)
            except (pa.ArrowException, TypeError, AttributeError, OverflowError, UnicodeEncodeError, ValueError):
                continue
            if len(together) > 1:
                tables[-1:] = [table]
            else:
                tables.append(table)
            kept = together
            break
    return tables


# --- the properties ---------------------------------------------------------------------------------------------------

COUNTS: Counter[str] = Counter()
SLOWEST: Counter[str] = Counter()


def named(error: DataError, path: Path) -> None:
    """File, row, and field where there are any."""
    assert error.file == str(path), error
    assert error.found, error
    assert error.line is not None or error.row is not None, error
    assert error.field is not None or any(s in str(error) for s in STRUCTURE), error


def without_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are handed on as they are."""
    return {k: v for k, v in row.items() if k != "prompt"}


def check(path: Path, name: str, rows: Sequence[Any] | None = None) -> None:
    """Loads the file, and looks at what was used and how everything else was refused.

    rows: what the file says, in order; None where it is damaged, so that nobody knows.
    """
    spec = DataSpec(str(path), kind=KIND.get(name, name), on_bad="skip")  # type: ignore[arg-type]
    begun = time.process_time()
    rejected: list[DataError] = []
    report = data = refusal = None
    try:
        report = scan(spec)
        data = load_dataset(spec, chatml_like(), reject=lambda e, _: rejected.append(e))
    except DataError as e:
        refusal = e
    took = time.process_time() - begun
    assert took < 1, f"{took:.2f} s of processor time for {path.suffix}"
    if refusal is not None and rejected:
        named(refusal, path)  # no row was left: the first one
    elif refusal is not None:  # of the whole file or its columns
        assert refusal.file == str(path)
        assert refusal.found
        assert rows is None or refusal.field is not None or refusal.line is not None or refusal.row is not None, refusal
    SLOWEST["µs"] = max(SLOWEST["µs"], round(took * 1e6))
    for error in rejected:
        named(error, path)
    used = list(data or ())
    COUNTS.update(used=len(used), rejected=len(rejected), files=1)
    columns = {k for row in rows or () if isinstance(row, dict) for k in row}
    for group in used:
        if rows is not None:
            said = without_prompt(group.prompt.row)
            by_content = (r for r in rows if repr(without_prompt(r)) == repr(said))
            row = rows[group.prompt.key] if path.suffix != ".csv" else next(by_content, {})
            assert may_be_used(row, name, columns), f"used: {said}"
            assert repr(without_prompt(row)) == repr(said), "not what the file says"  # (NaN is not itself)
        for completion in group.completions:
            assert data is not None
            assert completion.ids[-1] in data.ends
            assert completion.trained is None or completion.trained[-1]
    if report is not None and data is not None:
        assert report.used + report.bad == report.rows
        assert len(rejected) == data.report.bad >= report.bad


def rows_of(name: str, form: str, rng: random.Random, folder: Path) -> None:
    """A good row and five mutated ones, in a file of this format."""
    # (Arrow itself opens no file of more than 100 levels, whatever is in its columns.)
    odd = [*(v for v in ODD if v is not _DEEP), *ODD_IN_PARQUET] if form == "parquet" else ODD
    rows = [GOOD[name], *(mutated(GOOD[name], rng, odd) for _ in range(5))]
    COUNTS["mutated"] += 5
    path = folder / f"rows.{form}"
    if form == "parquet":
        for table in as_tables(rows):
            pq.write_table(table, path)
            check(path, name, table.to_pylist())
    elif form == "csv":
        content, said = as_csv(rows, list(GOOD[name]))
        path.write_bytes(content)
        check(path, name, said)
    else:
        texts = [json.dumps(r) for r in rows]
        if rng.random() < 0.5:
            texts = [json.dumps(r, ensure_ascii=False) for r in rows]
        content = ("\n".join(texts) if form == "jsonl" else f"[{','.join(texts)}]").encode(errors="surrogatepass")
        path.write_bytes(content + b"\n")
        check(path, name, rows)


def bytes_of(name: str, form: str, rng: random.Random, folder: Path) -> None:
    """A file with some bytes changed, cut or doubled."""
    rows, path = [GOOD[name]] * 4, folder / f"damaged.{form}"
    if form == "parquet":
        pq.write_table(as_tables(rows)[0], path, compression="none", write_page_checksum=True)
        content = bytearray(path.read_bytes())
    elif form == "csv":
        content = bytearray(as_csv(rows, list(GOOD[name]))[0])
    else:
        text = json.dumps(rows, indent=rng.choice((None, 1))) if form == "json" else "\n".join(map(json.dumps, rows))
        content = bytearray(text.encode())
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(5) if form != "parquet" else rng.randrange(2) * 2
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at:at] = rng.choice(
                (b"\0", b"\xff", b'"', b"{", b"[", b"\n", b"\\ud800", b"NaN", b"\xef\xbb\xbf", b",")
            )
        elif kind == 2:
            del content[at : at + rng.randrange(20)]
        elif kind == 3 and rng.random() < 0.3:
            del content[at:]
        else:
            content[at:at] = content[at : at + rng.randrange(40)]
    path.write_bytes(bytes(content))
    COUNTS["damaged"] += 1
    check(path, name)


FORMS = ("jsonl", "json", "csv", "parquet")
MUTATION = st.sampled_from(FORMS).flatmap(
    lambda form: st.tuples(st.sampled_from(FLAT if form == "csv" else list(GOOD)), st.just(form))
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one, after everything that is imported at its first use has been."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in GOOD:
        (folder / "r.jsonl").write_text(json.dumps(GOOD[name]))
        load_dataset(DataSpec(str(folder / "r.jsonl")), chatml_like())
    pq.write_table(pa.table({"text": ["A"]}), folder / "r.parquet")
    load_dataset(DataSpec(str(folder / "r.parquet")), chatml_like())
    return folder


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_are_used(name: str, tmp_path: Path) -> None:
    assert may_be_used(GOOD[name], name)
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD[name]))
    assert len(load_dataset(DataSpec(str(tmp_path / "r.jsonl")), chatml_like())) == 1


def test_the_oracle_knows_bad_rows() -> None:
    for name, row in GOOD.items():
        for key in row:
            if key != "answer" and (name, key) != ("preference", "prompt"):
                assert not may_be_used({**row, key: [None]}, name), (name, key)
                assert not may_be_used({k: v for k, v in row.items() if k != key}, name), (name, key)
    assert not may_be_used({**GOOD["preference"], "rejected": " Yes. "}, "preference")
    assert not may_be_used({"messages": TURNS[:-1]}, "messages")


@pytest.mark.fault("D1", "D2", "D3", "D4", "D5", "D13")
@FEW
@given(MUTATION, st.randoms(use_true_random=False))
def test_some_mutated_rows(folder: Path, what: tuple[str, str], rng: random.Random) -> None:
    rows_of(*what, rng, folder)


@pytest.mark.fault("D1", "D2", "D3", "D4", "D5", "D13")
@FEW
@given(MUTATION, st.randoms(use_true_random=False))
def test_some_damaged_files(folder: Path, what: tuple[str, str], rng: random.Random) -> None:
    bytes_of(*what, rng, folder)


@pytest.mark.fault("D1", "D2", "D3", "D4", "D5", "D13")
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fuzz", [rows_of, bytes_of])
def test_twenty_thousand_mutations(fuzz: Any, folder: Path) -> None:
    """4,000 files of five mutated rows, and 5,000 damaged files."""
    COUNTS.clear()
    SLOWEST.clear()

    @settings(FEW, max_examples=4000 if fuzz is rows_of else 5000)
    @given(MUTATION, st.randoms(use_true_random=False))
    def run(what: tuple[str, str], rng: random.Random) -> None:
        fuzz(*what, rng, folder)

    run()
    print(f"\n{fuzz.__name__}: {dict(COUNTS)}, the slowest file {SLOWEST['µs'] / 1e6:.2f} s")
    assert COUNTS["mutated"] >= 20_000 or COUNTS["damaged"] >= 5000
