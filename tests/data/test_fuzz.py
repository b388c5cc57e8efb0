"""Mutated rows and files: never another error than a DataError, always file and place, nothing bad accepted.

The fast tests take a few hundred examples; the same with 20,000 is marked slow.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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
ODD: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, "", " ", "\n\t", "\0", "x\0y", "<|im_end|>", "\u2028", "é🙂", "\u200b", [], {},
    [[]], [None], [{}], {"a": 1}, [user("A")], [assistant("A")], [{"role": "user"}], [{"role": "x", "content": "y"}],
    ["A"], "x" * 5000,
    "\n\nHuman: A\n\nAssistant:", "\n\nAssistant: A", {"role": "user", "content": "A"}, [user(" ")], "\r\n", '"', ",",
]  # fmt: skip


def mutated(row: dict[str, Any], rng: random.Random) -> Any:
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
        owner[key] = (
            owner[key][:at] + rng.choice(["\0", " ", "<|im_start|>", "\n\nHuman:", "\ue000", "🙂"]) + owner[key][at:]
        )
    elif kind == 4:
        return rng.choice(ODD)
    else:
        owner[key] = copy.deepcopy(rng.choice(ODD))
    return row


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ("system", "user", "assistant")
        and is_text(value.get("content"))
    )


def may_be_used(row: Any, name: str) -> bool:
    """Independently of the library: could this row possibly be learnt from?"""
    if not isinstance(row, dict):
        return False
    for column in GOOD[name]:
        if column == "answer" or (name == "prompt_only" and column != "prompt"):
            continue
        value = row.get(column)
        if column == "rewards":
            given = row.get("completions")
            fits = (
                isinstance(value, list)
                and isinstance(given, list)
                and len(value) == len(given)
                and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
            )
        elif column == "completions":
            fits = isinstance(value, list) and bool(value) and all(map(is_text, value))
        elif column in ("margin", "reward"):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        elif column == "label":
            fits = str(value).lower() in ("true", "false", "0", "1")
        elif isinstance(value, list):
            fits = bool(value) and all(is_message(m) for m in value)
        else:
            fits = is_text(value)
        if not fits:
            return False
    return True


def check(path: Path, name: str, *, used: Callable[[int], bool] | None = None) -> None:
    """Loads the file both ways; every error is a DataError that names the file, and each bad row its place."""
    spec = DataSpec(str(path), kind=KIND.get(name, name), on_bad="skip")  # type: ignore[arg-type]
    start = time.perf_counter()
    rejected: list[DataError] = []
    refusal: DataError | None = None
    report = data = None
    try:
        report = scan(spec)
        data = load_dataset(spec, chatml_like(), reject=lambda e, _: rejected.append(e))
    except DataError as e:
        refusal = e
    assert time.perf_counter() - start < 5  # bounded; one second on an idle machine
    if report is None or data is None:
        assert refusal is not None
        assert refusal.file == str(path)
        return
    assert report.used + report.bad == report.rows
    assert len(rejected) == data.report.bad >= report.bad
    for error in rejected:
        assert error.file == str(path)
        assert error.line is not None or error.row is not None
        assert error.found
    for group in data:
        assert used is None or used(group.prompt.key), f"row {group.prompt.key} should not be used"
        for completion in group.completions:
            assert completion.ids[-1] in data.ends
            assert completion.trained is None or completion.trained[-1]
            assert sum(i in data.ends for i in completion.ids) <= 1 + sum(not t for t in completion.trained or ()) + 5


def rows_of(name: str, rng: random.Random, folder: Path) -> None:
    rows = [GOOD[name], *(mutated(GOOD[name], rng) for _ in range(6))]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=rng.random() < 0.5) + "\n" for r in rows))
    check(path, name, used=lambda key: may_be_used(rows[key], name))


def bytes_of(name: str, rng: random.Random, folder: Path) -> None:
    """Files of each text format with some bytes changed, cut or doubled."""
    rows = [GOOD[name]] * 4
    form = rng.choice(("jsonl", "json", "csv"))
    if form == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        content = bytearray(out.getvalue().encode())
    else:
        text = json.dumps(rows, indent=rng.choice((None, 1))) if form == "json" else "\n".join(map(json.dumps, rows))
        content = bytearray(text.encode())
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(5)
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
    path = folder / f"rows.{form}"
    path.write_bytes(bytes(content))
    check(path, name)


def parquet_of(name: str, rng: random.Random, folder: Path) -> None:
    """Parquet files with columns of wrong types, and with bytes changed."""
    path = folder / "rows.parquet"
    row = copy.deepcopy(GOOD[name])
    for _ in range(20):
        changed = mutated(row, rng)
        try:
            table = pa.Table.from_pylist([changed] * 3)
            pq.write_table(table, path, compression="none", write_page_checksum=True)
        except (pa.ArrowException, TypeError, AttributeError, OverflowError):
            continue
        break
    else:
        return
    if rng.random() < 0.5:
        content = bytearray(path.read_bytes())
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))
    check(path, name)


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_are_used(name: str, tmp_path: Path) -> None:
    assert may_be_used(GOOD[name], name)
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD[name]))
    assert len(load_dataset(DataSpec(str(tmp_path / "r.jsonl")), chatml_like())) == 1


@pytest.mark.parametrize("fuzz", [rows_of, bytes_of, parquet_of])
@pytest.mark.parametrize("name", GOOD)
def test_a_few_hundred_mutations(name: str, fuzz: Callable[[str, random.Random, Path], None], tmp_path: Path) -> None:
    for seed in range(12):
        fuzz(name, random.Random(f"{name} {seed}"), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fuzz", [rows_of, bytes_of, parquet_of])
def test_twenty_thousand_mutations(fuzz: Callable[[str, random.Random, Path], None]) -> None:
    names = list(GOOD)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(6700 if fuzz is not rows_of else 1200):
            fuzz(names[seed % len(names)], random.Random(seed), Path(folder))
