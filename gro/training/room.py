"""How much memory a process may still take: the machine's, and what its control groups leave it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def memory_available(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping, in this machine and in the containers around this process.

    root: where /proc and /sys are.
    """
    rooms = [*_of_machine(root), *_of_groups(root)]
    if rooms:
        return max(min(rooms), 0)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # no Linux: half of what is built in


def _of_machine(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Of every control group that this process is in, its own and those around it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top, limit, used, idle = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            idle = "total_inactive_file"
        else:
            continue
        inside = top / path.lstrip("/")
        for folder in (inside, *inside.parents):
            yield from _left(folder, limit, used, idle)
            if folder == top:
                break


def _left(folder: Path, limit: str, used: str, idle: str) -> Iterator[int]:
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if most.isdigit() and now.isdigit():
        # Pages of files that nobody reads are given up first; they count as used.
        pages = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if len(line.split()) == 2)
        yield int(most) - int(now) + int(pages.get(idle, 0))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
