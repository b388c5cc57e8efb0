"""Which weights of a run lie on disk, and which of them are nearest to those that a step saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gro.errors import GroError
from gro.runs import RunReader
from gro.runs.store import CHECKPOINTS, DATABASE, STATE

MODEL, START = "model", "start"


@dataclass(frozen=True, slots=True)
class Weights:
    """The policy after some updates."""

    after: int
    """Number of updates behind it."""
    path: Path
    kind: Literal["model", "state"]
    """model: a folder in Hugging Face format.  state: what a run continues from, over the starting model."""


def saved(reader: RunReader) -> list[Weights]:
    """Everything that can be loaded, in the order of steps; of equals the exported model first."""
    found: list[Weights] = []
    start = start_folder(reader)
    if start is not None:
        found.append(Weights(0, start, "model"))
    if reader.status == "finished" and (reader.path / MODEL).is_dir():
        found.append(Weights(reader.last_step or 0, reader.path / MODEL, "model"))
    found += [Weights(n, path, "model") for n, path in _numbered(reader.path / CHECKPOINTS)]
    if start is not None:
        states = _numbered(reader.path / STATE)
        found += [Weights(n, path, "state") for n, path in states if (path / "weights.safetensors").is_file()]
    return sorted(found, key=lambda w: (w.after, w.kind))


def nearest(weights: Sequence[Weights], after: int, where: Path) -> Weights:
    """The weights nearest to those after so many updates, of two the earlier; GroError where there are none.

    >>> nearest([Weights(0, start, "model"), Weights(4, later, "model")], 2, run).after
    0
    """
    if not weights:
        raise GroError(
            f"{where} has no weights to load: neither a model, a checkpoint nor a state, and the model it started from "
            "is not here; training.save_every keeps checkpoints"
        )
    return min(weights, key=lambda w: (abs(w.after - after), w.after))


def start_folder(reader: RunReader) -> Path | None:
    """The model that the run started from; None where it is not on this machine."""
    if (reader.path / START).is_dir():
        return reader.path / START
    given = reader.config.get("model")
    named = given.get("path") if isinstance(given, dict) else given
    if not isinstance(named, str):
        return None
    folder = Path(named).expanduser()
    if (folder / DATABASE).is_file():
        folder = folder / MODEL
    return folder if folder.is_dir() else None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    named = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())
