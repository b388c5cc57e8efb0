"""Items from files of prompts with completions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gro.data.files import read_rows
from gro.data.layout import detect
from gro.data.rows import parse_row
from gro.data.spec import DataSpec, Kind, Text, Turn
from gro.errors import DataError
from gro.labels.answers import Kind as Asking
from gro.labels.items import Item, Spoken, digest


def read_items(path: str | Path, asking: Asking) -> tuple[list[Item], Counter[str]]:
    """The items of a file, each once, and how many were left out and why.

    Columns: `prompt` and `completions` (or `responses`), in text or messages; or [`prompt`,] `chosen`, `rejected`.
    To be compared in pairs, a row of more completions gives all its pairs.
    """
    found: dict[str, Item] = {}
    left_out: Counter[str] = Counter()
    for item in _rows(str(path)):
        different = list({digest(c): c for c in item.completions}.values())
        if len(different) < len(item.completions):
            left_out["completions that are there twice"] += len(item.completions) - len(different)
        if len(different) < asking.fewest:
            left_out["rows with fewer than two different completions"] += 1
            continue
        if asking.most == 2:
            pieces: Sequence[Sequence[Spoken]] = list(itertools.combinations(different, 2))
        else:
            left_out[f"completions beyond {asking.most} of a row"] += max(len(different) - asking.most, 0)
            pieces = [different[: asking.most]]
        for completions in pieces:
            one = Item(item.prompt, list(completions))
            left_out["rows that are there twice"] += one.id in found
            found.setdefault(one.id, one)
    if not found:
        expected = "prompts with two or more different completions"
        raise DataError(str(path), found="nothing to label", expected=expected)
    return list(found.values()), +left_out


def _rows(path: str) -> Iterator[Item]:
    layouts: dict[tuple[str, ...], Any] = {}
    for index, row in enumerate(read_rows(path)):
        columns = tuple(row.fields)
        if columns not in layouts:
            if not {"chosen", "completion", "completions", "responses"} & set(columns):
                found, expected = f"the columns {', '.join(map(repr, columns))}", "completions, or chosen and rejected"
                raise DataError(path, found=found, expected=expected, fix="With --model fresh samples are labelled.")
            kind: Kind = "preference" if {"chosen", "rejected"} <= set(columns) else "rewarded"
            names = {"completions": "responses"} if "responses" in columns and "completions" not in columns else {}
            layouts[columns] = detect(columns, DataSpec(path, kind=kind, columns=names))
        example = parse_row(row, index, layouts[columns])
        yield Item(spoken(example.prompt or ()), [spoken(c) for c in example.completions])


def spoken(text: Text) -> Spoken:
    """Plain text, or messages, as they stand in a file."""
    if text and isinstance(text[0], Turn):
        return [{"role": turn.role, "content": turn.content} for turn in text if isinstance(turn, Turn)]
    return "".join(piece.text for piece in text if not isinstance(piece, Turn))
