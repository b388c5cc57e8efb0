"""A tiny task for tests of whole jobs: sums of two digits, recipes for it, and `gro` run inside this process."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from gro.cli import main

CREATE = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "vocab_size": 300, "max_positions": 64}
MODEL = {"create": CREATE}
REWARD = {"reward": "exact_match", "column": "completion"}
SUMS = [(a, b) for a in range(10) for b in range(10)]


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def steps(self) -> list[str]:
        """The lines of steps."""
        return [line for line in self.out.splitlines() if line.startswith("step ") and "/" in line.split("  ")[0]]


def cli(*arguments: str | Path) -> Done:
    """`gro ...` in this process, which has torch imported already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["gro", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_data(folder: Path) -> None:
    """sums.jsonl: prompt and completion; pairs.jsonl: chosen and rejected.  The last 20 rows are to be held out."""
    write_rows(folder / "sums.jsonl", ({"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in SUMS))
    write_rows(
        folder / "pairs.jsonl",
        ({"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str((3 * a + b) % 17) + "!"} for a, b in SUMS),
    )


def recipe(path: Path, **keys: Any) -> Path:
    """A recipe file; data and run beside it.  A dotted key is written with double underscores."""
    full: dict[str, Any] = {"run": str(path.with_suffix("")), "prompts_per_step": 4, "training": {"steps": 2}}
    for key, value in keys.items():
        *parents, last = key.split("__")
        place = full
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    path.write_text(yaml.safe_dump(full, sort_keys=False), encoding="utf-8")
    return path


def sft(folder: Path, name: str = "sft", **keys: Any) -> Path:
    """Imitation of the first 80 sums by a model from nothing."""
    common = {"model": MODEL, "algorithm": "sft", "offline": {"path": str(folder / "sums.jsonl"), "stop": 80}}
    held_out = {"data": {"path": str(folder / "sums.jsonl"), "start": 80}, "limit": 8}
    more = {"rewards": [REWARD], "sampling": {"max_new_tokens": 3}, "eval": held_out, "prompts_per_step": 16}
    return recipe(folder / f"{name}.yaml", **(common | more | {"optimizer": {"learning_rate": 5e-3}} | keys))


def online(folder: Path, name: str = "online", **keys: Any) -> Path:
    """Answers to the prompts of the first 80 sums, from the model of `sft`."""
    common = {
        "model": str(folder / "sft"),
        "algorithm": "grpo",
        "online": {"path": str(folder / "sums.jsonl"), "stop": 80},
    }
    more = {"rewards": [REWARD], "sampling": {"max_new_tokens": 3}, "group_size": 4}
    return recipe(folder / f"{name}.yaml", **(common | more | keys))


def dpo(folder: Path, name: str = "dpo", **keys: Any) -> Path:
    """Preferences among answers, from the model of `sft`."""
    common = {
        "model": str(folder / "sft"),
        "algorithm": "dpo",
        "offline": {"path": str(folder / "pairs.jsonl"), "stop": 80},
    }
    held_out = {"data": {"path": str(folder / "pairs.jsonl"), "start": 80}, "limit": 15}
    return recipe(folder / f"{name}.yaml", **(common | {"eval": held_out} | keys))
