"""Which weights of a run lie on disk, and which of them are those that a step saw, or nearest to them."""

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
WHOLE, PARTS = "{}.safetensors", "parts"
"""Of a state: tensors in one file, or what several processes have written."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The policy after some steps."""

    after: int
    """Number of steps behind it."""
    path: Path
    kind: Literal["model", "policy", "reference"]
    """model: a folder in Hugging Face format, or an adapter's.  policy, reference: of a state, from which a run
    continues, over the starting model."""

    @property
    def version(self) -> tuple[int, int]:
        """Other than before where the folder was replaced by another of its name; OSError where it has gone."""
        found = self.path.stat()
        return found.st_ino, found.st_mtime_ns


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
        found += [Weights(n, path, "policy") for n, path in _states(reader, "weights")]
    return sorted(found, key=lambda w: (w.after, w.kind))


def nearest(weights: Sequence[Weights], after: int, where: Path) -> Weights:
    """The weights nearest to those after so many steps, of two the earlier; GroError where there are none.

    >>> nearest([Weights(0, start, "model"), Weights(4, later, "model")], 2, run).after
    0
    """
    if not weights:
        raise GroError(
            f"{where} has no weights to load: neither a model, a checkpoint nor a state, and the model it started from "
            "is not here; training.save_every keeps checkpoints"
        )
    return min(weights, key=lambda w: (abs(w.after - after), w.after))


def reference_after(step: int, refresh_every: int) -> int:
    """Which policy the reference of a step was: that after so many steps; 0: the start.

    >>> [reference_after(step, 2) for step in (1, 2, 3, 4, 5)]
    [0, 0, 2, 2, 4]
    """
    return (step - 1) // refresh_every * refresh_every if refresh_every else 0


def reference_of(reader: RunReader, step: int, refresh_every: int) -> Weights | None:
    """The reference that a step had, and nothing near it; None where it is not on this machine."""
    after = reference_after(step, refresh_every)
    exact = next((one for one in saved(reader) if one.after == after), None)
    if exact is not None or after == 0 or start_folder(reader) is None:
        return exact
    # A state holds the reference of its time, which is the same until it is refreshed again.
    states = _states(reader, "reference")
    return next((Weights(after, p, "reference") for n, p in states if after <= n < after + refresh_every), None)


def start_folder(reader: RunReader) -> Path | None:
    """The model that the run started from; None where it is not on this machine."""
    if (reader.path / START).is_dir():
        return reader.path / START
    given = reader.config.get("model")
    named = given.get("path") if isinstance(given, dict) else given
    if not isinstance(named, str):
        return None
    named_folder = Path(named).expanduser()
    for seen_from in _started_in(reader), Path():
        folder = seen_from / named_folder
        if (folder / DATABASE).is_file():
            folder = folder / MODEL
        if folder.is_dir():
            return folder
    return _of_the_hub(named)


def _started_in(reader: RunReader) -> Path:
    """From where the recipe's relative paths were seen, which the run's own place tells."""
    run = Path(str(reader.config.get("run", "")))
    below = len(run.parts)
    if run.is_absolute() or not below or reader.path.parts[-below:] != run.parts:
        return Path()
    return Path(*reader.path.parts[:-below])


def _of_the_hub(name: str) -> Path | None:
    """The copy that this machine has of a model with this name; nothing is fetched."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # it has none, or this is no name
        return None


def _states(reader: RunReader, what: str) -> list[tuple[int, Path]]:
    """States with these tensors; what several processes have written may hold them or not."""
    found = _numbered(reader.path / STATE)
    return [(n, p) for n, p in found if (p / WHOLE.format(what)).is_file() or (p / PARTS / ".metadata").is_file()]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    named = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())
