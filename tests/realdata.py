"""Where the real data lies, if it lies anywhere: `$GRO_DATA`, or `shared/data` beside or in the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]


def data_file(name: str) -> Path:
    """The path of `name`; skips the calling test with a message where it is absent."""
    folders = [Path(p) for p in (os.environ.get("GRO_DATA"),) if p]
    folders += [_ROOT.parent / "shared" / "data", _ROOT / "shared" / "data"]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"real data {name!r} is not here; set GRO_DATA to the folder that holds it")
