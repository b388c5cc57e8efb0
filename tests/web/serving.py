"""A page's server in this process, on a real port."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.routing import BaseRoute

from gro.web.app import create_app
from gro.web.serve import _config, listen

TOKEN = "the-token"


@dataclass(frozen=True)
class Served:
    """Where it is."""

    port: int

    def address(self, path: str, rest: str = "") -> str:
        """What the terminal would print, with what stands behind # in `rest`."""
        return f"http://127.0.0.1:{self.port}{path}?token={TOKEN}{rest}"

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        asked.add_header("cookie", f"gro_{self.port}={TOKEN}")
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            return refused.code, json.loads(refused.read())


@contextmanager
def served(routes: Sequence[BaseRoute]) -> Iterator[Served]:
    """The application, until the block ends."""
    listening = listen(0)
    port = listening.getsockname()[1]
    server = uvicorn.Server(_config(create_app(routes, token=TOKEN, port=port)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Served(port)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
