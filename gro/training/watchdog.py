"""If one of several processes fails, dies or stops answering, all end soon, and say which.

A process that waits in a collective for one that is gone would wait for its time limit, then blame the network.  So
each has a thread that says every second that it is alive, and looks whether its neighbour is (the next rank, so that
the work does not grow with the square of the processes) and whether anybody has told of a failure.  Whoever notices
tells all; who is still busy a little later is ended.

The processes meet at a store, which torchrun keeps, or the first of them.  A second thread looks whether the first one
still gets answers there: the store may have stopped with its host.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed import DistError

from gro.errors import GroError, Interrupted, in_a_line
from gro.rewards.process import end_all_workers
from gro.training.processes import Processes

INTERVAL, SILENCE, GRACE = 1.0, 20, 4.0
"""Seconds between two looks; looks without a sign of life; seconds to end by oneself."""
LATE = 300
"""Looks until a process must have come."""
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
        self._connect = store or meeting_point
        self._found, self._over = threading.Event(), threading.Event()
        self._looks, self._patient = 0, True
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("watchdog", self._run), ("second watchdog", self._run_second))
        ]

    def __enter__(self) -> Watchdog:
        self._store, self._mine = self._connect(), self._connect()  # one for each thread
        self._store.set(f"gro/who/{self.processes.rank}", f"{os.getpid()} {socket.gethostname()}")
        for thread in self._threads:
            thread.start()
        return self

    def all_are_here(self) -> None:
        """From now on SIGTERM leaves time to say why.  Before, the main thread may wait in code that no handler can
        interrupt, and nothing is lost."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _end_soon)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        failure = self.cause_of(error)
        if error is None or _of_all(error):
            self._tell(f"gro/done/{self.processes.rank}", "1")
        elif self.failure is None:
            here = f"process {self.processes.rank} on {socket.gethostname()}"
            self._tell("gro/failed", f"{here} stopped: {in_a_line(error)}")
        if error is not None and self.failure is None and self.processes.first and not _agent_keeps_store():
            time.sleep(2 * INTERVAL)  # the store ends with this process: the others shall have heard
        self._over.set()
        for thread in self._threads:
            thread.join(GRACE)
        if failure is not None:
            raise GroError(failure) from error

    def cause_of(self, error: BaseException | None) -> str | None:
        """The failure of another process of which this error is what it looks like from here."""
        if error is None or isinstance(error, GroError) or _of_all(error):
            return None
        if self._patient and (looks := _looks_of_another(error)):
            self._found.wait(INTERVAL * looks)
            self._patient = False
        return self.failure

    def _tell(self, key: str, what: str) -> None:
        with suppress(RuntimeError):  # nobody is there to hear it
            self._store.set(key, what)

    def _run(self) -> None:
        try:
            failure = self._watch(self._mine)
        except RuntimeError as error:  # all that a store raises
            failure = f"{_host_of_store()} is gone: {str(error).splitlines()[0]}"
        if failure is not None:
            self._end(failure)

    def _run_second(self) -> None:
        looks, silent = 0, 0
        while not self._over.wait(INTERVAL) and self.failure is None:
            silent = silent + 1 if looks == self._looks else 0
            looks = self._looks
            if silent >= SILENCE:
                self._end(f"{_host_of_store()} has not answered for {SILENCE * INTERVAL:.0f} s")

    def _end(self, failure: str) -> None:
        """Lets this process end because of a failure elsewhere, or ends it."""
        self.failure = failure
        self._found.set()
        if self._over.wait(GRACE):
            return
        # It waits in a collective, or for a reward: nothing that can be interrupted.
        print(f"error: {failure}; this one ({self.processes.rank}) ends too", file=sys.stderr, flush=True)
        last = threading.Thread(target=self.told, args=(failure,), daemon=True)  # the disk may not answer either
        last.start()
        last.join(GRACE / 4)
        end_all_workers()
        os._exit(GONE)

    def _watch(self, store: Store) -> str | None:
        """What has happened to one of the processes; None: this one's block is over."""
        rank, size = self.processes.rank, self.processes.size
        other = (rank + 1) % size
        last, silent = b"", 0
        while not self._over.wait(INTERVAL):
            self._looks += 1
            store.set(f"gro/alive/{rank}", str(self._looks))
            if store.check(["gro/failed"]):
                return store.get("gro/failed").decode()
            if store.check([f"gro/done/{other}"]):
                continue
            if not store.check([f"gro/who/{other}"]):
                if self._looks >= LATE:
                    return f"process {other} has not come within {LATE * INTERVAL:.0f} s"
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


def meeting_point() -> Store:
    """The store that the group itself has met at."""
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def _agent_keeps_store() -> bool:
    """Whether torchrun keeps the store, and not the first process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _host_of_store() -> str:
    """Who keeps the store."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if _agent_keeps_store():
        return f"torchrun, where the processes meet ({where}),"
    return f"process 0, where the processes meet ({where}),"


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


def _of_all(error: BaseException) -> bool:
    """Whether all processes have agreed to stop."""
    return isinstance(error, Interrupted) and error.together


def _looks_of_another(error: BaseException) -> int:
    """How many looks it may take until it is known of which other process's end this error may come."""
    if isinstance(error, KeyboardInterrupt | Interrupted):
        return 3  # torchrun asks all to end where one has
    text = f"{type(error).__name__}: {error}"
    broken = isinstance(error, DistError) or any(word in text for word in ("gloo", "NCCL", "peer"))
    return SILENCE + 3 if broken else 0
