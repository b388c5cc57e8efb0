"""Runs to watch, made by hand; and a server of the page that ends its streams when it ends."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import TOKEN, Served

from gro.runs import Run
from gro.runs.records import RolloutRecord
from gro.web.app import create_app
from gro.web.serve import Server, listen
from gro.web.watch.routes import Watching

LONG = 60
"""Seconds for what happens at once, on a machine that has much else to do."""


def config(algorithm: str = "grpo", seed: int = 0, **more: Any) -> dict[str, Any]:
    """A resolved configuration, as far as pages look at it."""
    return {"algorithm": {"name": algorithm}, "seed": seed, "training": {"steps": 3}, **more}


def made(path: Path, steps: Sequence[Mapping[str, float]], finished: bool = True, **settings: Any) -> Path:
    """A run with these metrics at steps 1, 2, …"""
    with Run.open(path, config(**settings)) as run:
        for step, metrics in enumerate(steps, 1):
            run.record(step, metrics)
        if finished:
            run.finish()
    return path


def rewards(path: Path, *values: float, **settings: Any) -> Path:
    """A run with these rewards at steps 1, 2, …"""
    return made(path, [{"reward": value} for value in values], **settings)


def sample(group: int, row: int, prompt: str, completion: str, reward: float | None) -> RolloutRecord:
    """A completion; the prompt's key is its group."""
    return RolloutRecord(
        group=group, row=row, prompt=prompt, prompt_ids=[1], completion=completion, completion_ids=[1, 2],
        reward=reward, finish="stop", key=group,
    )  # fmt: skip


@contextmanager
def watched(*paths: Path, every: float = 0.05, heartbeat: float = 15.0) -> Iterator[tuple[Served, Watching]]:
    """The page over these paths, until the block ends."""
    watching = Watching(paths, every, heartbeat)
    listening = listen(0)
    port = listening.getsockname()[1]
    server = Server(create_app(watching.routes, token=TOKEN, port=port), watching.end)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Served(port), watching
    finally:
        server.should_exit = True
        thread.join(LONG)
        listening.close()
        assert not thread.is_alive(), "the server did not end"


class News:
    """A page's stream, read from a socket.

    >>> with News(port) as news:
    ...     kind, data = news.next()
    """

    def __init__(self, port: int, token: str = TOKEN) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
        headers = {"Cookie": f"gro_{port}={token}", "Sec-Fetch-Site": "same-origin", "Accept": "text/event-stream"}
        self._connection.request("GET", "/api/watch/stream", headers=headers)
        self.answer = self._connection.getresponse()

    def next(self) -> tuple[str, Any]:
        """The next event and its data; ("comment", text) for a comment, ("end", None) at the end."""
        kind, data = "", ""
        while line := self.answer.readline().decode():
            name, _, rest = line.rstrip("\n").partition(":")
            if not line.strip():
                return (kind, json.loads(data)) if kind else ("comment", data)
            if name == "event":
                kind = rest.strip()
            else:
                data += rest.strip()
        return "end", None

    def until(self, wanted: Callable[[str, Any], bool]) -> list[tuple[str, Any]]:
        """Everything up to the event that is wanted, which is the last."""
        found, last = [], time.monotonic() + LONG
        while True:
            found.append(self.next())
            assert found[-1][0] != "end", found
            assert time.monotonic() < last, found
            if wanted(*found[-1]):
                return found

    def until_end(self) -> tuple[str, Any]:
        """The last thing that is told."""
        while (told := self.next())[0] != "end":
            pass
        return told

    def __enter__(self) -> News:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._connection.close()


def soon(holds: Callable[[], Any]) -> Any:
    """What it gives as soon as that is something."""
    last = time.monotonic() + LONG
    while not (found := holds()):
        assert time.monotonic() < last, "it never came"
        time.sleep(0.01)
    return found
