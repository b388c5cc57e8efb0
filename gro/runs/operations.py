"""What the operations on a run directory have in common: they are announced, and a refusal is explained.

Announcing makes writing testable.  A test observes the operations of a save, counts them, and kills the process, or
raises ENOSPC, at each of them in turn.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gro.errors import GroError
from gro.runs.plain import size_text

OnOperation = Callable[[str, Path], None]

on_operation: OnOperation | None = None
"""Called as (operation, path) before each operation.  What it raises, the operation raises."""

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class DiskError(GroError):
    """The file system refused: full, over quota, read-only, broken.  What was there before is intact."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number
        """The system's error number, such as errno.ENOSPC, where there is one."""


class DamagedError(GroError):
    """A published directory is incomplete or its content is not what was written; the message names the file."""


def announce(operation: str, path: Path) -> None:
    """Tell the observer, if there is one, that `operation` on `path` is about to happen."""
    if on_operation is not None:
        on_operation(operation, path)


@contextmanager
def observed(hook: OnOperation) -> Iterator[None]:
    """Within this block `hook` is told of every operation, and may raise or kill in place of it."""
    global on_operation
    before, on_operation = on_operation, hook
    try:
        yield
    finally:
        on_operation = before


@contextmanager
def explained(doing: str, path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of this block into a DiskError that says what was being done and how much room there is.

    `needed`: bytes that were to be written, where that is known.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"cannot {doing} {path}: {describe(error, path, needed)}", error.errno) from error


def describe(error: OSError, path: Path, needed: int | None = None) -> str:
    """The system's words for `error`, and for a full disk the bytes needed and free."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        need = "" if needed is None else f"{size_text(needed)} needed, "
        text += f" ({need}{size_text(free_bytes(path))} free)"
    return text


def refusal(error: BaseException) -> OSError | None:
    """The refusal of the disk that `error` is or, as other libraries put it, speaks of; None where it is another.

    safetensors raises its own class with Rust's words ("os error 28" or "code: 28"); PyTorch a RuntimeError without a
    number.
    """
    if isinstance(error, OSError):
        return error if error.errno in _OF_THE_DISK else None
    if isinstance(error, DiskError) and error.errno is not None:
        return OSError(error.errno, os.strerror(error.errno))
    if isinstance(error, Exception) and not isinstance(error, GroError):
        if found := re.search(r"os error (\d+)|\bOs \{ code: (\d+)", str(error)):
            number = int(found[1] or found[2])
            return OSError(number, os.strerror(number))
        if isinstance(error, RuntimeError) and re.search(r"PytorchStreamWriter|inline_container\.cc", str(error)):
            return OSError(errno.EIO, f"PyTorch could not write: {str(error).splitlines()[0]}")
    return None


def free_bytes(path: Path) -> int:
    """Bytes that can still be written on the file system of `path` or of its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
