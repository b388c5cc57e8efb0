"""News for every open page as server-sent events: one look at the runs a second for all of them, and none for none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gro.web.watch.board import Board
from gro.web.watch.watched import Known

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

MOST = 32
"""Open streams."""
_KIND = "text/event-stream"
_WAITING = 256
"""Events that may wait for a page; one that does not take them is cut off, and asks again when it can."""
_ALARMS = 20
"""New alarms of a run that are told one by one."""

Page = asyncio.Queue[str | None]


class Stream:
    """The stream that `GET` of its route answers with.

    First `runs` with the facts of all runs.  Then `runs` again where one was found, `steps` with the facts of those
    that changed, and `alarm` for each new alarm.  A comment line every `heartbeat` seconds shows who has gone.
    """

    def __init__(self, board: Board, every: float = 1.0, heartbeat: float = 15.0) -> None:
        self.board, self.every, self.heartbeat = board, every, heartbeat
        self._pages: set[Page] = set()
        self._poller: asyncio.Task[None] | None = None
        self._told: dict[str, Known] = {}
        self._ended = False

    async def answer(self, request: Request) -> Response:
        """To a request: news without end, until the page or the server goes."""
        if request.method == "HEAD":
            return Response(media_type=_KIND)
        if len(self._pages) >= MOST or self._ended:
            raise HTTPException(503, f"{MOST} pages are open already: close one")
        page: Page = asyncio.Queue()
        self._pages.add(page)  # nothing waits between this and the answer's beginning
        if self._poller is None:
            self._told = self.board.known()
            self._poller = asyncio.create_task(self._poll())
        return _Answer(self, page)

    def end(self) -> None:
        """Ends every stream: the server is going."""
        self._ended = True
        self.board.close()
        self._cut(list(self._pages))

    def leave(self, page: Page) -> None:
        """A page has gone; with the last one the looking ends."""
        self._pages.discard(page)
        if not self._pages and self._poller is not None:
            self._poller.cancel()
            self._poller = None

    async def news(self, page: Page) -> AsyncIterator[str]:
        """What one page is sent."""
        yield _event("runs", _facts(self._told))
        while True:
            try:
                async with asyncio.timeout(self.heartbeat):
                    event = await page.get()
            except TimeoutError:
                event = ": still here\n\n"
            if event is None:
                return
            yield event

    async def _poll(self) -> None:
        try:
            while True:
                complete = await asyncio.to_thread(self.board.refresh)
                self._tell(self.board.known())
                await asyncio.sleep(self.every if complete else 0)
        finally:
            if self._poller is asyncio.current_task():  # nobody has ended it: the pages ask again, and begin anew
                self._poller = None
                self._cut(list(self._pages))

    def _tell(self, now: dict[str, Known]) -> None:
        """What changed since the last time, to everybody."""
        before, self._told = self._told, now
        events = [] if before.keys() == now.keys() else [_event("runs", _facts(now))]
        changed = {
            name: known for name, known in now.items() if name in before and known.version > before[name].version
        }
        events += [_event("steps", _facts(changed))] if changed else []
        for name, known in changed.items():
            if before[name].status != "unread":
                new = known.alarms[len(before[name].alarms) :][-_ALARMS:]
                events += [_event("alarm", {"run": name, **alarm}) for alarm in new]
        for page in list(self._pages):
            if page.qsize() + len(events) > _WAITING:
                self._cut([page])
            else:
                for event in events:
                    page.put_nowait(event)

    def _cut(self, pages: list[Page]) -> None:
        for page in pages:
            while not page.empty():
                page.get_nowait()
            page.put_nowait(None)


class _Answer(StreamingResponse):
    """A page's stream; its place is free again however it ends."""

    def __init__(self, stream: Stream, page: Page) -> None:
        super().__init__(stream.news(page), media_type=_KIND)
        self.stream, self.page = stream, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.leave(self.page)


def _facts(known: dict[str, Known]) -> dict[str, Any]:
    return {"runs": [one.facts() for one in known.values()]}


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
