"""What stands before every page: who may ask, from where, with what, and how much.

A server on the loopback address is within reach of every page that the same browser shows, and of everybody on the
machine.  So each request has to pass all of this, whatever its method:

- `Host` is a name of this machine with our port, so that no name elsewhere can be pointed at us (DNS rebinding);
- `Origin` and `Sec-Fetch-Site`, where the browser sends them, say that the page is ours; a write must have an `Origin`;
- the token that was printed in the terminal, as a cookie that only we can read and only our pages send;
- a write is JSON, and carries a second secret that only our pages know (a form can send neither);
- bodies are bounded in size and time, and read before any code of a page runs.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import traceback
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20
"""Bytes of a request.  The largest thing that a page sends is a rationale."""
BODY_SECONDS = 10.0
CSRF_HEADER = "x-gro-csrf"
READS, WRITES = ("GET", "HEAD"), ("POST",)

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""On every answer.  Trusted types make the browser itself refuse innerHTML and its like."""


class Refusal(Exception):
    """A request that goes no further: the status and one sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """The middleware around a whole application.

    >>> Guard(app, token="secret", csrf="other secret", port=8000)
    """

    def __init__(
        self, app: ASGIApp, *, token: str, csrf: str, port: int, max_body: int = MAX_BODY, seconds: float = BODY_SECONDS
    ) -> None:
        """`seconds` is how long a body may take to arrive."""
        self.app, self.token, self.csrf, self.max_body, self.seconds = app, token, csrf, max_body, seconds
        self.hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
        self.cookie = f"gro_{port}"  # cookies do not tell ports apart, so two servers need two names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what is allowed; everything else is answered here."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no page has a WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        answer = _Answer(send)
        send = answer.send
        try:
            entry = self._check(scope)
            if entry is not None:
                return await _answer(send, 303, b"", location=entry, cookie=self._set_cookie())
            body = await self._body(scope, receive) if scope["method"] in WRITES else b""
        except Refusal as refusal:
            return await _refuse(scope, send, refusal)
        try:
            await self.app(scope, _replayed(body, receive), send)
        except Exception:  # a bug of ours: the terminal has the traceback, the page a sentence
            traceback.print_exc()
            if answer.started:
                raise
            await _refuse(scope, send, Refusal(500, "something went wrong in the server; the terminal says what"))

    def _check(self, scope: Scope) -> str | None:
        """Raises a `Refusal`; or tells where to go without the token, of a request that has it in its address."""
        method, headers = scope["method"], scope["headers"]
        host = _single(headers, b"host")
        if host is None or host.lower() not in self.hosts:
            raise Refusal(403, "this server answers to 127.0.0.1, localhost and [::1] with its own port only")
        write = method in WRITES
        if not write and method not in READS:
            raise Refusal(405, "only GET, HEAD and POST are answered")
        origin = _single(headers, b"origin")
        if origin != f"http://{host}" and (origin is not None or write):
            raise Refusal(403, "the request does not come from a page of this server")
        site = _single(headers, b"sec-fetch-site")
        if site not in ((None, "same-origin") if write else (None, "same-origin", "none")):
            raise Refusal(403, "the request does not come from a page of this server")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in query if key == "token"]
        if given and not write and _same(given[0], self.token):
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            return quote("/" + scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
        if not _same(self._sent_token(headers), self.token):
            raise Refusal(403, "open the address that the terminal shows: it has the token")
        if write:
            if not _same(_single(headers, CSRF_HEADER.encode()), self.csrf):
                raise Refusal(403, "the page is from an earlier start of the server: load it again")
            if not _is_json(_single(headers, b"content-type")):
                raise Refusal(415, "a request that changes something is application/json")
        return None

    def _sent_token(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        sent = _single(headers, b"cookie")
        if sent is None:
            return None
        try:
            found = SimpleCookie(sent).get(self.cookie)
        except CookieError:
            return None
        return found.value if found is not None else None

    def _set_cookie(self) -> str:
        return f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, within its limits."""
        size = _single(scope["headers"], b"content-length")
        if size is not None and not (size.isdecimal() and size.isascii()):
            raise Refusal(400, "content-length is not a number")
        if size is not None and (len(size) > 15 or int(size) > self.max_body):
            raise Refusal(413, f"a request may have {self.max_body} bytes")
        body = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the request ended early")
                    body += message.get("body", b"")
                    if len(body) > self.max_body:
                        raise Refusal(413, f"a request may have {self.max_body} bytes")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refusal(408, f"the request took longer than {self.seconds:g} s to arrive") from None


def _single(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The header's value; of one that is there twice a text that matches nothing."""
    found = [value for key, value in headers if key.lower() == name]
    return None if not found else found[0].decode("latin-1") if len(found) == 1 else "\0twice"


def _same(given: str | None, secret: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), secret.encode())


def _is_json(kind: str | None) -> bool:
    parts = [part.strip().lower() for part in (kind or "").split(";")]
    return parts[0] == "application/json" and all(part == "charset=utf-8" for part in parts[1:])


class _Answer:
    """What is sent, with the headers of every answer."""

    def __init__(self, send: Send) -> None:
        self._send, self.started = send, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            kept = [(k, v) for k, v in message.get("headers", []) if k.decode().lower() not in HEADERS]
            message = {**message, "headers": [*kept, *((k.encode(), v.encode()) for k, v in HEADERS.items())]}
        await self._send(message)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What was read already, once; then what the connection says."""
    told = False

    async def receiving() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    """In JSON to who asked for JSON, else in words."""
    api = scope["path"].startswith("/api/")
    body = json.dumps({"error": refusal.why}) if api else f"{refusal.status}: {refusal.why}\n"
    # After a write the connection ends, so that what is left of a body is not read.
    kind = "application/json" if api else "text/plain; charset=utf-8"
    await _answer(send, refusal.status, body.encode(), kind=kind, close=scope["method"] not in READS)


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    kind: str = "text/plain",
    location: str = "",
    cookie: str = "",
    close: bool = False,
) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(b"location", location.encode())] if location else []
    headers += [(b"set-cookie", cookie.encode())] if cookie else []
    headers += [(b"connection", b"close")] if close else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
