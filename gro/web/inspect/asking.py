"""The side of the page's server that asks: torch runs in another process, started when it is needed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gro.errors import GroError

SECONDS = 300.0
"""The longest answer: a large model has to be read from disk first."""
IDLE_SECONDS = 300.0
"""After so long without a question the worker ends, and its memory is free."""


class Asking:
    """A worker process that comes and goes; safe to use from threads, which wait for each other.

    >>> asking = Asking(Path("runs/first"))
    >>> asking.ask("actions", step=4, row=0, at=3)["policy"]
    [0.6, 0.2, ...]
    """

    def __init__(self, run: Path, device: str = "cpu", seconds: float = SECONDS, idle: float = IDLE_SECONDS) -> None:
        self.run, self.device, self.seconds, self.idle = run, device, seconds, idle
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._asked = 0

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """The answer; GroError with the worker's reason, or where it died or takes too long (it is then ended)."""
        with self._lock:
            for attempt in (1, 2):
                process = self._running()
                self._asked += 1
                try:
                    self._send(process, {"id": self._asked, "do": do, **what})
                    reply = self._receive(process, self._asked)
                except EOFError:
                    self._end()
                    if attempt == 2:  # once, it may have ended for idleness while it was asked
                        raise GroError("the process that loads models ended; the terminal may say why") from None
                    continue
                if "error" in reply:
                    raise GroError(reply["error"])
                return reply["answer"]
        raise AssertionError

    def close(self) -> None:
        """Ends the worker."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-m", "gro.web.inspect.worker", str(self.run), self.device, str(self.idle)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._pending = b""
        return self._process

    def _send(self, process: subprocess.Popen[bytes], question: dict[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise EOFError from error

    def _receive(self, process: subprocess.Popen[bytes], number: int) -> dict[str, Any]:
        assert process.stdout is not None
        until = time.monotonic() + self.seconds
        while True:
            while b"\n" in self._pending:
                line, _, self._pending = self._pending.partition(b"\n")
                reply = json.loads(line)
                if reply["id"] == number:
                    return reply
            left = until - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                self._end()
                raise GroError(f"no answer within {self.seconds:g} s; the process that loads models was ended")
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                raise EOFError
            self._pending += read

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what was not sent is lost with the process
                        pipe.close()
