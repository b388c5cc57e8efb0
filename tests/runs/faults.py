"""Faults at the n-th operation on a run directory: the disk refuses, or the process is killed."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from gro.runs import files


def operations_of(action: Callable[[], object]) -> list[str]:
    seen: list[str] = []
    with files.observed(lambda operation, path: seen.append(operation)):
        action()
    return seen


def damage(database: Path, page: int = 4096) -> None:
    """The first bytes of every page of the second half of an SQLite file are lost."""
    data = bytearray(database.read_bytes())
    for start in range(len(data) // page // 2 * page, len(data), page):
        data[start : start + 64] = b"\xff" * 64
    database.write_bytes(data)


def fail_at(n: int, number: int = errno.ENOSPC) -> files.OnOperation:
    """An observer that raises in place of the n-th operation, from 0."""
    count = iter(range(10**9))

    def hook(operation: str, path: Path) -> None:
        if next(count) == n:
            raise OSError(number, os.strerror(number))

    return hook


def killed_at(n: int, action: Callable[[], object]) -> bool:
    """Run `action` in a process that is killed at its n-th operation; whether it came that far."""
    count = iter(range(10**9))

    def hook(operation: str, path: Path) -> None:
        if next(count) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            with files.observed(hook):
                action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the action itself failed: {status}"
    return status != 0
