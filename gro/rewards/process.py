"""One reward process as its parent sees it: a socket for jobs and answers, a pipe for what it prints, a hard end.

Each is an interpreter of its own (not a fork: the threads of torch do not survive one) in a session of its own.

Why not a ready-made process pool: such a pool shares one channel and one lock among its workers, ends a process
politely and without its children, unpickles what the reward sends, and imports the main module again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gro.rewards.registry import NAMED
from gro.rewards.worker import LENGTH, Setup

MOST_OUTPUT = 4_096
"""Bytes of printed output that are kept to explain a failure."""
MOST_ANSWER = 64 << 20
"""Bytes of one answer."""

_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from gro.rewards.worker import main; main(int(sys.argv[1]))"
MARK = "GRO_REWARD_WORKER"
"""The environment variable that a reward process and all that it starts are known by."""
_HARMLESS = ("PATH", "LANG", "LC_", "LD_", "PYTHON")
"""Beginnings of the environment variables that our own rewards see: it may hold keys, and they need none."""


_running: dict[str, tuple[int, int]] = {}
"""Marks of reward processes: who has started them, and their number."""


class GoneError(Exception):
    """The process ended, or speaks nonsense."""


class WorkerProcess:
    """A running `gro.rewards.worker`.  Everything that it sends is treated as hostile."""

    def __init__(self, setup: Setup) -> None:
        self._mark = uuid.uuid4().hex
        self._received = bytearray()
        self._printed = b""
        self.channel, theirs = socket.socketpair()
        self.output, printer = os.pipe()
        os.set_blocking(self.output, False)
        home = str(Path(__file__).resolve().parents[2])
        path = dict.fromkeys([*(os.path.abspath(entry) for entry in sys.path), home])
        ours = isinstance(setup.place, str) and setup.place in NAMED
        environment = {k: v for k, v in os.environ.items() if not ours or k.startswith(_HARMLESS)}
        alive, self._alive = os.pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), *path],
                stdin=subprocess.DEVNULL,
                stdout=printer,
                stderr=printer,
                pass_fds=(theirs.fileno(), alive),
                start_new_session=True,  # Ctrl-C is for the trainer; and the session can be killed as a whole
                env=environment | {MARK: self._mark},
            )
        os.close(printer)
        _ends_with_us(alive, self._process.pid)
        os.close(alive)
        _running[self._mark] = (os.getpid(), self._process.pid)
        self.post(pickle.dumps(setup), patience=10.0)

    def post(self, message: bytes, patience: float) -> bool:
        """Send.  False where the process is gone or does not read for `patience` seconds."""
        self.channel.settimeout(patience)
        try:
            self.channel.sendall(LENGTH.pack(len(message)) + message)
        except OSError:
            return False
        self.channel.settimeout(None)
        return True

    def answers(self) -> Iterator[dict[str, Any]]:
        """What has arrived; waits if nothing has.  Raises GoneError at the end and at what is no answer.

        One by one: what came before the nonsense is still good.
        """
        try:
            data = self.channel.recv(1 << 18)
        except OSError as error:
            raise GoneError from error
        self._received += data
        if not data or len(self._received) > MOST_ANSWER:
            raise GoneError
        if b"\n" not in data:
            return
        *lines, rest = bytes(self._received).split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise GoneError from error
            if not isinstance(answer, dict):
                raise GoneError
            yield answer

    def first_answer(self, patience: float) -> dict[str, Any]:
        """Wait for one answer.  Raises GoneError, also where none comes in `patience` seconds."""
        until = time.monotonic() + patience
        listening = [self.channel, self.output]
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select(listening, [], [], left)
            # Else an import that prints more than a pipe holds would wait for us, and we for it.
            if self.output in ready and not self.drain():
                listening.remove(self.output)
            if self.channel in ready:
                for answer in self.answers():
                    return answer
        raise GoneError

    def drain(self) -> bool:
        """Read what was printed and keep its end.  False once nobody can print any more."""
        try:
            data = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return True
        self._printed = (self._printed + data)[-MOST_OUTPUT:]
        return bool(data)

    def forget_printed(self) -> None:
        """What comes next belongs to another call."""
        self._printed = b""

    @property
    def printed(self) -> str:
        """The end of what was printed."""
        self.drain()
        return self._printed.decode(errors="replace")

    def end(self, patience: float = 0.0) -> str:
        """Kill the process and all that it started.  Returns how it had ended by itself within `patience` seconds."""
        until = time.monotonic() + patience
        while (status := self._status()) is None and time.monotonic() < until:
            time.sleep(0.002)
        # Before it is reaped: while the zombie is there, its number cannot go to somebody else's processes.
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _running.pop(self._mark, None)
        _kill_marked(self._mark)
        self.channel.close()
        os.close(self._alive)
        with contextlib.suppress(OSError):
            self.drain()
        os.close(self.output)
        return _ending(status)

    def _status(self) -> int | None:
        """Exit code, or minus the signal; None while it runs."""
        try:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody reaped it for us
            return self._process.poll()
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def end_all_workers() -> None:
    """Kill every reward process that this one has started: for where it ends without taking anything down in order."""
    for mark, (starter, pid) in list(_running.items()):
        if starter == os.getpid():
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            _kill_marked(mark)


def _ending(status: int | None) -> str:
    if status is None:
        return "closed its channel"
    if status >= 0:
        return f"ended with exit code {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def _ends_with_us(pipe: int, group: int) -> None:
    """Let the kernel kill a process group when this process is gone, and nobody can write into this pipe any more.

    Otherwise a call that hangs would go on for as long as its limit (`gro.rewards.worker`)."""
    if hasattr(fcntl, "F_SETSIG"):  # Linux
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -group)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def _kill_marked(mark: str) -> None:
    """Kill what left the session: it still carries the environment that it was born with."""
    needle = f"{MARK}={mark}".encode()
    for _ in range(10):  # one that forks while we look is found on the next pass
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if needle in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return
