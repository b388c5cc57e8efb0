"""One owner per run directory.

The kernel's lock decides, so there is no race, and a killed owner's lock is gone with it: a stale lock recovers without
anybody deciding that it is stale.  What the file says (pid, host, start) is for the message.  Between hosts this is as
good as the locks of the shared file system; NFSv4's reach across hosts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gro.errors import GroError
from gro.runs import files

# A reader that asks "is it running?" holds the lock for microseconds; an owner-to-be tries again for this long (s).
_PATIENCE = 0.4
_RECORD_BYTES = 512  # the record is padded to one size, so that it is replaced by a single write


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds, or last held, a run directory."""

    pid: int
    host: str
    started: str
    """UTC, ISO 8601, to the second."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}"


class RunLock:
    """The lock of a run directory, held until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int, predecessor: Owner | None) -> None:
        self.path = path
        self.predecessor = predecessor
        """The owner that died without releasing the lock; None where the last one ended properly."""
        self._descriptor: int | None = descriptor
        _held.add(self)

    @classmethod
    def acquire(cls, path: Path) -> RunLock:
        """Take the lock at `path` or raise GroError within a second, naming the owner."""
        with files.explained("lock", path):
            files.announce("create", path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _take(path, descriptor)
            predecessor = _read(descriptor)
            started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            _write(path, descriptor, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, predecessor)

    def release(self) -> None:
        """Give the lock back.  The file stays: removing it would let two owners lock two files of one name."""
        if self._descriptor is not None:
            try:
                _write(self.path, self._descriptor, {})
            finally:
                self._abandon()

    def _abandon(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def owner(path: Path) -> Owner | None:
    """Who holds the lock at `path` now; None: nobody.  Needs to read the file only."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor) or Owner(pid=0, host="unknown", started="unknown")
    except OSError:
        return None  # no locks here, so none is held
    finally:
        os.close(descriptor)
    return None


def _take(path: Path, descriptor: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                who = _read(descriptor) or "another process"
                raise GroError(
                    f"{path.parent} is in use by {who}. One run directory has one owner: wait for it, stop it, or "
                    "choose another directory"
                ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise GroError(
                f"{path.parent} lies on a file system without locks; choose a directory on a local disk"
            ) from error
        time.sleep(0.02)


def _read(descriptor: int) -> Owner | None:
    try:
        record = json.loads(os.pread(descriptor, _RECORD_BYTES, 0))
        return Owner(int(record["pid"]), str(record["host"]), str(record["started"]))
    except (ValueError, KeyError, TypeError):
        return None  # empty, released, or not ours


def _write(path: Path, descriptor: int, record: dict[str, object]) -> None:
    with files.explained("lock", path, _RECORD_BYTES):
        files.announce("write", path)
        os.pwrite(descriptor, json.dumps(record).encode().ljust(_RECORD_BYTES - 1) + b"\n", 0)


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked child shares its parent's lock; unless it lets go, it would hold it after the parent was killed."""
    for lock in list(_held):
        lock._abandon()


os.register_at_fork(after_in_child=_forget_in_child)
