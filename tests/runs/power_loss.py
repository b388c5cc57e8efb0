"""What may be on the disk after a power cut: a recorder of what really happened to files, and a journaling file system.

A SIGKILL does not test fsync, since the kernel still has everything.  Here every file operation is recorded as it
happened (by looking at the directory before each announced operation and each fsync, so what other libraries write is
seen too), and for every prefix of the record the possible contents of the disk are worked out:

- data of a file that was not synced may be there, cut off, zeroes, or as it was when it was last synced;
- a name that was given, changed or taken away may be the old or the new one until its directory is synced, each file
  for itself and in any combination; a rename is either done or not.

That is weaker than what ext4, xfs and btrfs promise, so what survives here survives there.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from gro.runs import files

Place = tuple[int, str]
"""A name in a directory (its inode)."""


@dataclass
class Inode:
    """A file or a directory, and what is certain of it."""

    directory: bool
    places: list[Place | None]
    """Where it may be found; the first is certain as long as it is the only one.  None: nowhere."""
    content: bytes = b""
    synced: bytes | None = None
    """Content that is on the disk for certain.  None: not even its length."""
    seen: int = 0
    """When it came to its last place: of two at one place, the later one is there."""
    replaced: bool = False
    """Another has its last place; once that is certain, this one is gone."""

    def contents(self) -> list[bytes]:
        """What may be read from it after a power cut."""
        new, old = self.content, self.synced
        if self.directory or old == new:
            return [new]
        kept = old if old is not None and new.startswith(old) else b""  # data before an append is not touched
        more = len(new) - len(kept)
        cut = (1, more // 2, more - 1)
        torn = [kept, *(kept + new[len(kept) :][:n] for n in cut), kept + bytes(more), new]
        return list(dict.fromkeys(torn if old is None else [old, *torn]))


Disk = dict[int, Inode]
State = dict[str, bytes | None]
"""Relative path → content; None: a directory."""


@dataclass
class Record:
    """What happened below `root`, as the disks that it led to, one for each moment."""

    root: Path
    moments: list[tuple[Disk, object]] = field(default_factory=list)
    """Each with the latest mark before it."""
    marked: object = None
    _disk: Disk = field(default_factory=dict)
    _seen: dict[int, tuple[Place, bytes | None]] = field(default_factory=dict)
    _held: list[int] = field(default_factory=list)
    _clock: Iterator[int] = field(default_factory=itertools.count)

    def mark(self, what: object) -> None:
        """`what` was promised from here on."""
        self.look()
        self.marked = what
        self._moment()

    def look(self) -> None:
        """Take down what changed since the last look."""
        now = self._scan()
        if now != self._seen:
            self._take_down(now)
            self._seen = now
            self._moment()

    def synced(self, number: int) -> None:
        """The inode `number` was synced: a file's data are certain; a directory's names are."""
        self.look()
        if number not in self._disk:
            return
        inode = self._disk[number]
        inode.synced = inode.content
        if inode.directory:
            for other, entry in list(self._disk.items()):
                touched = [i for i, place in enumerate(entry.places) if _in(place, number)]
                moved = [i for i in range(1, len(entry.places)) if {i, i - 1} & set(touched)]
                if moved:
                    entry.places = entry.places[moved[-1] :]
                if entry.places == [None] or (entry.replaced and touched):
                    del self._disk[other]
        self._moment()

    def _moment(self) -> None:
        copies = {n: Inode(**{**vars(i), "places": list(i.places)}) for n, i in self._disk.items()}
        self.moments.append((copies, self.marked))

    def _scan(self) -> dict[int, tuple[Place, bytes | None]]:
        found: dict[int, tuple[Place, bytes | None]] = {}
        pending = [(self.root.stat().st_ino, self.root)]
        while pending:
            parent, path = pending.pop()
            for entry in os.scandir(path):
                number = entry.inode()
                if number not in self._seen:  # held, so that no later file gets the same number
                    self._held.append(os.open(entry.path, os.O_RDONLY))
                directory = entry.is_dir(follow_symlinks=False)
                found[number] = ((parent, entry.name), None if directory else Path(entry.path).read_bytes())
                if directory:
                    pending.append((number, Path(entry.path)))
        return found

    def _take_down(self, now: dict[int, tuple[Place, bytes | None]]) -> None:
        for number, (place, content) in now.items():
            if number not in self._disk:
                self._disk[number] = Inode(content is None, [None], seen=-1)
            inode = self._disk[number]
            if inode.places[-1] != place:
                inode.places.append(place)
                inode.seen = next(self._clock)
            inode.content = content or b""
        taken = {place for place, _ in now.values()}
        for number in self._seen.keys() - now.keys():
            inode = self._disk[number]
            if inode.places[-1] in taken:
                inode.replaced = True  # by a rename, which is done or not: it does not vanish by itself
            else:
                inode.places.append(None)

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._held:
            os.close(descriptor)


def _in(place: Place | None, directory: int) -> bool:
    return place is not None and place[0] == directory


@contextmanager
def recorded(root: Path) -> Iterator[Record]:
    """Record what happens below `root`; what is there already is certain."""
    record = Record(root)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        real(descriptor)
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
        record.synced(status.st_ino)

    record.look()
    for inode in record._disk.values():
        inode.places, inode.synced = inode.places[-1:], inode.content
    record._disk[root.stat().st_ino] = Inode(True, [(0, "")])
    record.moments.clear()
    record._moment()
    try:
        with mock.patch("os.fsync", fsync), files.observed(lambda operation, path: record.look()):
            yield record
            record.look()
    finally:
        record.close()


def states(disk: Disk, limit: int, chance: random.Random) -> Iterator[State]:
    """The possible contents of the disk: all, or `limit` drawn from them beside those with one thing old or new."""
    numbers = sorted(disk)
    choices = [list(itertools.product(disk[n].places, disk[n].contents())) for n in numbers]
    total = 1
    for options in choices:
        total *= len(options)
    seen: set[frozenset[tuple[str, bytes | None]]] = set()
    for chosen in itertools.product(*choices) if total <= limit else _drawn(choices, limit, chance):
        state = _state(disk, dict(zip(numbers, chosen, strict=True)))
        key = frozenset(state.items())
        if key not in seen:
            seen.add(key)
            yield state


def _drawn(choices: list[list[tuple[Place | None, bytes]]], limit: int, chance: random.Random) -> Iterator[tuple]:
    for corner in (0, -1):  # everything as it was, everything as it is; and one thing otherwise
        base = [options[corner] for options in choices]
        yield tuple(base)
        for i, options in enumerate(choices):
            for option in options:
                yield (*base[:i], option, *base[i + 1 :])
    for _ in range(limit):
        yield tuple(chance.choice(options) for options in choices)


def _state(disk: Disk, chosen: dict[int, tuple[Place | None, bytes]]) -> State:
    at: dict[Place, int] = {}
    for number, (place, _) in chosen.items():
        if place is not None and (place not in at or disk[at[place]].seen < disk[number].seen):
            at[place] = number
    names: dict[int, list[tuple[str, int]]] = {}
    for (parent, name), number in at.items():
        names.setdefault(parent, []).append((name, number))
    state: State = {}
    pending = [("", number) for _, number in names.get(0, [])]
    while pending:
        path, number = pending.pop()
        if path:
            state[path] = None if disk[number].directory else chosen[number][1]
        pending += [(f"{path}/{name}".lstrip("/"), child) for name, child in names.get(number, [])]
    return state


def lay_out(state: State, root: Path) -> None:
    """Make the files of `state` below the new directory `root`."""
    root.mkdir()
    for path, content in sorted(state.items()):
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
