"""How much disk a run needs, and whether its directory can hold it: found at the start, not hours later."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gro.assemble import MODEL, START, Data, Start, identity_of, may_differ, places_of, refuse_other_content
from gro.config import Config
from gro.errors import GroError
from gro.objective import Algorithm
from gro.preflight.memory import critic_size, lora_of
from gro.preflight.sizes import Sizes
from gro.runs import files
from gro.runs.database import EmptyRunError
from gro.runs.identity import differences
from gro.runs.plain import size_text
from gro.runs.reader import RunReader
from gro.runs.store import CHECKPOINTS, CONFIG, DATABASE, STATE
from gro.training.checkpoint import KEPT, PREFIX

_STATES = KEPT + 1
"""Those that are kept, and the one that is being written before the oldest goes."""
_REST = 64 * 2**20
"""Bytes for metrics, rollouts, the tokenizer and the report."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What a run writes, in bytes."""

    path: Path
    """The run directory."""
    model: int
    """An exported model."""
    models: int
    """How many of them: the result, and one for every `save_every` steps."""
    state: int
    """All that an interrupted run needs to continue."""
    states: int
    begun: int = 0
    """A starting model that the recipe makes."""

    @property
    def needed(self) -> int:
        """All of it."""
        return self.model * self.models + self.state * self.states + self.begun + _REST

    @property
    def held(self) -> int:
        """What an earlier attempt has already written, which this one replaces or keeps."""
        return sum(_size(self.path / name) for name in (MODEL, START, STATE, CHECKPOINTS))

    @property
    def free(self) -> int:
        """What can still be written there."""
        return files.free_bytes(self.path)

    def __str__(self) -> str:
        parts = [f"{self.models} × {size_text(self.model)} of exported models"]
        parts += [f"{self.states} × {size_text(self.state)} of states to continue from"] if self.states else []
        parts += [f"the starting model {size_text(self.begun)}"] if self.begun else []
        return f"{size_text(self.needed)}: {', '.join(parts)}"


def disk_of(config: Config, algorithm: Algorithm, policy: Sizes) -> Disk:
    """What the recipe's run writes."""
    model = policy.trunk if algorithm.scores else policy.whole
    trained = policy.trained if lora_of(config) is not None else model
    trained_bytes = trained.weights
    state = trained_bytes + (0 if algorithm.step is not None else trained.optimizer)
    if (critic := critic_size(config, algorithm, policy)) is not None:
        state += critic.weights + critic.optimizer
    if config.training.refresh_reference:
        state += trained_bytes
    every, steps = config.training.save_every, config.training.steps
    members = config.reward_model.members if algorithm.scores else 1
    return Disk(
        path=Path(config.run).expanduser().absolute(),
        model=model.weights + policy.buffers,
        models=(members + 1 if members > 1 else 1) + members * (steps // every if every else 0),
        state=state,
        states=_STATES,
        begun=policy.whole.parameters * 4 if config.model.create is not None else 0,
    )


def refuse_without_room(disk: Disk) -> None:
    """Raises GroError where the disk cannot hold what the run will write."""
    free, needed = disk.free, disk.needed - disk.held
    if free < needed:
        more = "; a larger training.save_every writes fewer models" if disk.models > 1 else ""
        raise GroError(
            f"{disk.path}: the disk has {size_text(free)} free and the run needs {size_text(needed)} more "
            f"({disk}){more}"
        )


def check_directory(config: Config) -> str | None:
    """Raises GroError where a run cannot be written there; what is said of one that can be continued.

    Nothing is written.
    """
    path, reason = Path(config.run).expanduser().absolute(), "is not a directory"
    if path.exists() and not path.is_dir():
        raise GroError(f"run: {path} {reason}")
    if (path / DATABASE).is_file():
        try:
            reader = RunReader(path)
        except EmptyRunError:  # which opening it puts right
            return f"{path} holds a run that was stopped at its very beginning; the same command begins it anew"
        with reader:
            changes = "; ".join(differences(reader.config, config.resolved(), may_differ(config)))
            if reader.status == "finished":
                if changes:
                    raise GroError(f"run: {path} holds a finished run of another recipe: {changes}")
                return f"{path} holds a finished run of this recipe; nothing is left to do"
            if changes and reader.last_step is not None:
                raise GroError(
                    f"run: {path} holds another run: {changes}. Use the same settings to continue it, or choose "
                    "another directory"
                )
            said = f"{path} holds a run that is not finished; the same command continues it"
            if (alarm := _ended_by(path)) is not None:
                said = f"{path} holds a run that an alarm has ended: {alarm}"
            return f"{said} (it is running now: {reader.owner})" if reader.status == "running" else said
    if path.is_dir() and not (path / CONFIG).exists() and any(p for p in path.iterdir() if not p.name.startswith(".")):
        names = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))[:3]
        raise GroError(f"run: {path} is not empty and holds no run ({', '.join(names)}); choose another directory")
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise GroError(f"run: {path} cannot be made: {place} {reason}")
    if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        raise GroError(f"run: {path} cannot be written: {place} is read-only for this user")
    return None


def check_content(config: Config, data: Data, start: Start) -> str | None:
    """Raises GroError where the run that is to be continued was begun with other data, template, model or code; what is
    said where it is finished."""
    path = Path(config.run).expanduser().absolute()
    if not (path / DATABASE).is_file():
        return None
    try:
        reader = RunReader(path)
    except EmptyRunError:
        return None
    with reader:
        before, finished = reader.kept("identity"), reader.status == "finished"
        begun = finished or reader.last_step is not None or any((path / STATE).glob("*"))
    if before is None or not begun:
        return None
    try:
        refuse_other_content(str(path), before, identity_of(config, data, start), places_of(config, data, start))
    except GroError as error:
        if not finished:
            raise
        return str(error).partition(". Restore")[0]
    return None


def _ended_by(run: Path) -> str | None:
    """The alarm that ended it after its newest state, in words; None where none did."""
    states = files.complete_directories(run / STATE, PREFIX)
    try:
        return files.read_json(states[0] / "state.json")["recorder"]["ended"]["said"] if states else None
    except (GroError, KeyError):  # damaged, or of another version: continuing it says so
        return None


def _size(folder: Path) -> int:
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found += (Path(place) / name).stat().st_size
            except OSError:
                continue
    return found
