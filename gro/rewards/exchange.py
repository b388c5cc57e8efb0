"""One question and answer over HTTP, which ends in time however slowly the bytes come.

Free of torch: the worker processes import it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult

MOST_ANSWER = 4 << 20
"""Bytes of one answer."""

FAILED = (OSError, http.client.HTTPException)
"""What `post` raises where the connection fails or takes too long: trying again may help."""


class TooLongError(Exception):
    """The answer has more than MOST_ANSWER bytes."""


class NotHttpError(Exception):
    """What came is no answer of a web server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said, whatever its status."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """With lower-case names."""
    body: bytes

    @property
    def said(self) -> str:
        """In short, for messages."""
        return f"{self.status} {self.reason}: {self.body[:200].decode(errors='replace')!r}"


def post(address: SplitResult, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
    """The answer, redirects not followed.

    Raises one of FAILED (TimeoutError after `timeout` seconds from connecting to the last byte), TooLongError or
    NotHttpError.
    """
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    assert address.hostname is not None
    connection = kind(address.hostname, address.port, timeout=timeout)
    deadline = time.monotonic() + timeout
    try:
        connection.connect()
        with _hanging_up(connection, deadline - time.monotonic()):
            path = (address.path or "/") + (f"?{address.query}" if address.query else "")
            connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            text = response.read(MOST_ANSWER + 1)
            if len(text) > MOST_ANSWER:
                raise TooLongError(f"the answer is longer than {MOST_ANSWER >> 20} MB")
            if response.length:  # of the announced bytes some never came, and read() does not mind
                raise ConnectionError("the connection was closed within the answer")
            if time.monotonic() >= deadline:  # cut off by ourselves, perhaps where it looks like an end
                raise TimeoutError
    except (*FAILED, ValueError) as error:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no whole answer in {timeout:g} s") from error
        if isinstance(error, ValueError):
            raise NotHttpError(f"the answer is not HTTP: {error}") from error
        raise
    finally:
        connection.close()
    return Answer(response.status, response.reason, {k.lower(): v for k, v in response.getheaders()}, text)


@contextlib.contextmanager
def _hanging_up(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Shuts the connection down after so many seconds: the socket's own limit begins anew with every byte."""
    # Taken now: the connection lets go of it as soon as an answer says that it will be the last.
    sock = connection.sock

    def hang_up() -> None:
        with contextlib.suppress(OSError):
            # Of the plain socket: that of a TLS one would change the object under the reader's hands.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, seconds), hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
