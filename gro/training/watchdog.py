"""If one of several processes fails, dies or stops answering, all end soon, and say which.

A process that waits in a collective for one that is gone would wait for its time limit, then blame the network.  So
each has a thread that says every second that it is alive, and looks whether its neighbour is (the next rank, so that
the work does not grow with the square of the processes) and whether anybody has told of a failure.  Whoever notices
tells all; who is still busy a little later is ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from torch._C._distributed_c10d import Store, TCPStore

from gro.errors import GroError, Interrupted
from gro.training.processes import Processes

INTERVAL, SILENCE, GRACE = 1.0, 22, 4.0
"""Seconds between two looks; looks without a sign of life; seconds to end by oneself."""
GONE = 1
"""Exit code of a process that ends because of another."""


class Watchdog:
    """Watches over the other processes for as long as the block runs.

    >>> with Watchdog(Processes.current()):
    ...     train(...)
    """

    def __init__(self, processes: Processes, store: Callable[[], Store] | None = None) -> None:
        """`store`: how the processes reach each other besides collectives; None: as torchrun has told them."""
        self.processes = processes
        self.failure: str | None = None
        """What has happened to one of them, in words."""
        self.told: Callable[[str], object] = lambda message: None
        """Called with the failure before this process is ended by it."""
        self._connect = store or _meeting_point
        self._found, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._store, self._mine = self._connect(), self._connect()  # one for each thread
        self._store.set(f"gro/who/{self.processes.rank}", f"{os.getpid()} {socket.gethostname()}")
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _end_soon)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        ours = isinstance(error, GroError | Interrupted)
        if error is not None and not ours:
            # It may only be what the end of another looks like from here, of which the thread soon knows more.
            self._found.wait(INTERVAL * 3 if kind is KeyboardInterrupt else INTERVAL * (SILENCE + 3))
        if error is not None and self.failure is None:
            self._tell(f"process {self.processes.rank} on {socket.gethostname()} stopped: {_words(error)}")
        elif error is None:
            self._store.set(f"gro/done/{self.processes.rank}", "1")
        failure = self.failure
        self._over.set()
        self._thread.join(GRACE)
        if error is not None and failure is not None and not ours:
            raise GroError(failure) from error

    def _tell(self, failure: str) -> None:
        with suppress(RuntimeError):  # nobody is there to hear it
            self._store.set("gro/failed", failure)

    def _run(self) -> None:
        try:
            failure = self._watch(self._mine)
        except RuntimeError as error:  # all that a store raises
            failure = f"the processes' meeting point is gone: {str(error).splitlines()[0]}"
        if failure is None:
            return
        self.failure = failure
        self._found.set()
        if not self._over.wait(GRACE):  # it waits in a collective, or for a reward: nothing that can be interrupted
            self.told(failure)
            print(f"error: {failure}; this one ({self.processes.rank}) ends too", file=sys.stderr, flush=True)
            os._exit(GONE)

    def _watch(self, store: Store) -> str | None:
        """What has happened to one of the processes; None: this one's block is over."""
        rank, size = self.processes.rank, self.processes.size
        other = (rank + 1) % size
        number, last, silent = 0, b"", 0
        while not self._over.wait(INTERVAL):
            number += 1
            store.set(f"gro/alive/{rank}", str(number))
            if store.check(["gro/failed"]):
                return store.get("gro/failed").decode()
            if store.check([f"gro/done/{other}"]) or not store.check([f"gro/who/{other}"]):
                continue
            alive = store.get(f"gro/alive/{other}") if store.check([f"gro/alive/{other}"]) else b""
            silent = silent + 1 if alive == last else 0
            last = alive
            who = store.get(f"gro/who/{other}").decode()
            gone = _is_gone(who)
            if gone or silent >= SILENCE:
                what = "is gone" if gone else f"has not answered for {SILENCE * INTERVAL:.0f} s"
                failure = f"process {other} (pid and host {who}) {what}"
                store.set("gro/failed", failure)
                return failure
        return None


def _meeting_point() -> Store:
    """The store that the group itself has met at."""
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def _is_gone(who: str) -> bool:
    """Whether a process of this host has ended, be it that its parent has not noticed yet."""
    pid, _, host = who.partition(" ")
    if host != socket.gethostname():
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return Path("/proc/self").exists()
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


def _end_soon(number: int, frame: FrameType | None) -> None:
    """Asked to end where nobody else listens, most likely because another process has: there is time to say so."""
    timer = threading.Timer(2 * GRACE, os._exit, [128 + number])
    timer.daemon = True
    timer.start()


def _words(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
