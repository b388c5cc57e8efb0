"""A real server in a process of its own, and people who ask it over sockets."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Server:
    """`gro label` on a file, killed and started again on the same port.

    >>> server = Server(folder, "--kind", "pairs").start()
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments, self.port = folder, arguments, 0
        self.process: subprocess.Popen[str] | None = None
        self.credentials: dict[str, str] = {}
        self.address, self.said = "", ""

    def start(self) -> Server:
        """Waits until it answers."""
        command = [sys.executable, "-u", "-m", "gro", "label", "--labels", str(self.folder / "labels.db")]
        command += ["--port", str(self.port), *self.arguments]
        with (self.folder / "stderr.txt").open("a") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith("http"):
                break
        else:
            raise AssertionError(f"it ended: {self.said}{(self.folder / 'stderr.txt').read_text()}")
        self.address = line.strip()
        parts = urlsplit(self.address)
        assert parts.port is not None
        self.port = parts.port
        try:
            self._enter(parse_qs(parts.query)["token"][0])
        except BaseException:
            self.end()
            raise
        return self

    def _enter(self, token: str) -> None:
        connection = self.connect()
        connection.request("GET", "/", headers={"Cookie": f"gro_{self.port}={token}"})
        found = re.search('name="gro-csrf" content="([^"]+)"', connection.getresponse().read().decode())
        assert found is not None
        self.credentials = {
            "Cookie": f"gro_{self.port}={token}", "X-Gro-CSRF": found[1], "Content-Type": "application/json",
            "Origin": f"http://127.0.0.1:{self.port}",
        }  # fmt: skip
        connection.close()

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def end(self, how: int = signal.SIGKILL) -> int:
        """Ends it; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(how)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        self.process.stdout.close()
        self.process = None
        return code


class Person(threading.Thread):
    """Labels until so many labels are acknowledged; sends one in five again, and what was not answered always."""

    def __init__(self, server: Server, number: int, labels: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server, self.who, self.wanted, self.stop = server, f"person {number}", labels, stop
        self.acknowledged: dict[str, int] = {}
        """Key → the label's number."""
        self.repeated, self.wrong = 0, ""
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        """Work."""
        try:
            for i in range(self.wanted):
                offered = self.ask("next", {"annotator": self.who})["item"]
                key = f"{self.who} label {i}"
                body = {"annotator": self.who, "item": offered["item"], "lease": offered["lease"], "key": key,
                        "answer": {"choice": i % 2}, "seconds": 0.1}  # fmt: skip
                found = self.ask("save", body)
                self.acknowledged[key] = found["label"]
                if i % 5 == 0:
                    again = self.ask("save", body)
                    assert again == {"label": found["label"], "repeated": True}, again
                    self.repeated += 1
        except BaseException as e:
            if not self.stop.is_set():
                self.wrong = f"{self.who}: {e!r}"

    def ask(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer, whatever happens to the server in between."""
        while not self.stop.is_set():
            try:
                self._connection = self._connection or self.server.connect()
                self._connection.request("POST", f"/api/label/{what}", json.dumps(body), self.server.credentials)
                answer = self._connection.getresponse()
                found = answer.read()
            except (OSError, http.client.HTTPException):
                self._connection = None
                self.stop.wait(0.05)
                continue
            if answer.status == 200:
                return json.loads(found)
            if answer.status == 403:  # from before the restart
                self.stop.wait(0.05)
                continue
            raise AssertionError(f"{answer.status}: {found!r}")
        raise TimeoutError
