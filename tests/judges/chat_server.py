"""A real HTTP server on this machine that speaks the chat-completions protocol, and says what a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Raw:
    """An answer that is no chat completion."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announce: int | None = None
    """Content-Length, where it is not that of the body."""
    hang: threading.Event | None = None
    """Nothing comes until this is set."""
    drip: bool = False
    """The body comes byte by byte, far more slowly than anybody waits."""


@dataclass
class Request:
    """What the server was sent."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def question(self) -> str:
        return self.body["messages"][0]["content"]


Script = Callable[[Request], str | Raw]
"""What to answer: text as a chat completion, or anything else."""


class ChatServer:
    """>>> with ChatServer(lambda request: "Verdict: A") as server: ...  # at server.url"""

    def __init__(self, script: Script) -> None:
        self.script, self.requests = script, list[Request]()
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                outer.requests.append(request)
                answer = outer.script(request)
                self.send(Raw(body=completion(answer)) if isinstance(answer, str) else answer)

            def send(self, raw: Raw) -> None:
                if raw.hang is not None:
                    raw.hang.wait(30)
                self.send_response(raw.status)
                length = len(raw.body) if raw.announce is None else raw.announce
                for name, value in {**raw.headers, "Content-Length": str(length), "Connection": "close"}.items():
                    self.send_header(name, value)
                self.end_headers()
                for byte in raw.body if raw.drip else ():
                    self.wfile.write(bytes([byte]))
                    if outer._over.wait(0.1):
                        return
                if not raw.drip:
                    self.wfile.write(raw.body)
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client may hang up, as it should
                    super().handle()

        return Handler


def completion(text: Any, finish: str = "stop") -> bytes:
    """A chat completion with this text."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()
