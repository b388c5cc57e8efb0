"""The server: on the loopback address only, with one address to open, until Ctrl-C."""

from __future__ import annotations

import asyncio
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from starlette.routing import BaseRoute
from uvicorn.protocols.http.h11_impl import H11Protocol

from gro.errors import GroError
from gro.web.app import create_app

HEADER_SECONDS = 10.0
"""How long a request's head may take to arrive."""
MAX_CONNECTIONS = 256
"""A browser keeps six; the rest is for more people and tabs."""
MAX_HEAD = 16 << 10


def serve(
    routes: Sequence[BaseRoute],
    *,
    port: int = 0,
    path: str = "/",
    open_browser: bool = False,
    say: Callable[[str], object] = print,
    ending: Callable[[], object] | None = None,
    **limits: Any,
) -> None:
    """Serves until Ctrl-C or SIGTERM.  Port 0 takes a free one; `path` is the page that the printed address opens.

    `ending` is called when that comes, so that answers without an end can end.
    """
    listening = listen(port)
    port = listening.getsockname()[1]
    token = secrets.token_urlsafe(24)
    app = create_app(routes, token=token, port=port, **limits)
    address = f"http://127.0.0.1:{port}{path}{'&' if '?' in path else '?'}token={token}"
    server = Server(app, ending)
    say(address)
    say("Only this machine reaches it, and only with that address. Ctrl-C ends it.")
    if open_browser:
        webbrowser.open(address)
    try:
        asyncio.run(server.serve(sockets=[listening]))
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(128)  # who opens the address at once waits, and is not refused
    except (OSError, OverflowError) as e:
        listening.close()
        why = getattr(e, "strerror", None) or e
        raise GroError(f"--port {port} cannot be had: {why}. Without --port a free one is taken") from e
    return listening


class Server(uvicorn.Server):
    """What `serve` runs."""

    def __init__(self, app: Any, ending: Callable[[], object] | None = None) -> None:
        """`ending` as for `serve`."""
        super().__init__(_config(app))
        self.ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for the answers under way, for a bounded time."""
        if self.ending is not None:
            self.ending()
        await super().shutdown(sockets)


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        access_log=False,  # addresses may hold the token
        log_level="error",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="off",
        backlog=128,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that waits for a request's head a bounded time only, on a bounded number of connections."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection too many is closed at once, so that file descriptors remain for labels."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        """The clock runs while no request is being answered, from the first byte of its head or from the start."""
        if self._waiting is None and self._idle():
            self._wait()
        super().data_received(data)
        if not self._idle():
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """No clock outlives its connection."""
        self._stop()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_late(self) -> None:
        self._waiting = None
        if self._idle() and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
