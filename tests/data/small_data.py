"""Small files and what is loaded from them."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gro.data.dataset import Dataset
from gro.data.encode import load_dataset
from gro.data.spec import DataSpec

_FOLDER = tempfile.TemporaryDirectory()
_NUMBERS = itertools.count()


def jsonl(rows: Iterable[Any]) -> str:
    """The path of a new JSONL file of these rows, gone when the tests are."""
    path = Path(_FOLDER.name) / f"rows-{next(_NUMBERS)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(
    rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase, *, end_ids: tuple[int, ...] = (), **spec: Any
) -> Dataset:
    """The data set of these rows."""
    return load_dataset(DataSpec(jsonl(rows), **spec), tokenizer, end_ids=end_ids)


def user(text: str) -> dict[str, str]:
    """A message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """A message."""
    return {"role": "assistant", "content": text}


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """What these ids say, special tokens included."""
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str)
    return text
