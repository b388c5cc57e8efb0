"""Limits for Python code that is not ours: memory, and time in whichever thread it runs."""

from __future__ import annotations

import ctypes
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")
_POLL = 0.1


class TimeUp(BaseException):
    """Raised inside the code that ran too long; not an Exception, so that it is not handled there by accident."""


@dataclass(slots=True)
class _Running:
    deadline: float
    stopped: bool = False


_lock = threading.Lock()
_running: dict[int, _Running] = {}
_watcher: threading.Thread | None = None


def limited(function: Callable[[], _T], seconds: float) -> _T:
    """The function's result; TimeUp if it takes longer.

    It is stopped between two Python instructions: loops end, a single long operation of the interpreter does not.
    """
    run = _Running(time.monotonic() + seconds)
    thread = threading.get_ident()
    with _lock:
        _running[thread] = run
        _watch()
    try:
        result = function()
    except TimeUp:
        raise
    except BaseException:
        _finish(thread, run)
        raise
    _finish(thread, run)
    return result


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """MemoryError where the process grows by more than so many bytes.

    It is the whole process's limit, so nothing else should need much meanwhile.  Where the system knows no such limit
    (macOS), there is none.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [limit for limit in (now + more, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _finish(thread: int, run: _Running) -> None:
    """After this nothing is raised any more: if the watcher was faster by a moment, its exception comes here."""
    with _lock:
        _running.pop(thread, None)
    while run.stopped:
        time.sleep(0.001)


def _watch() -> None:
    global _watcher
    if _watcher is None or not _watcher.is_alive():  # (A forked process has none.)
        _watcher = threading.Thread(target=_look_after, name="gro-deadline", daemon=True)
        _watcher.start()


def _look_after() -> None:
    while True:
        time.sleep(_POLL)
        with _lock:
            for thread, run in _running.items():
                if not run.stopped and time.monotonic() > run.deadline:
                    run.stopped = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeUp))
