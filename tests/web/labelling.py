"""What the tests of labelling share: items, a store, and one label after another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from gro.labels.items import Item
from gro.labels.store import Offered, Sent, Store
from gro.web.app import create_app
from gro.web.label.pages import routes
from gro.web.serve import _config, listen


def items(n: int, k: int = 2) -> list[Item]:
    """So many prompts with k completions each, no two alike."""
    return [Item(f"prompt {i}", [f"completion {j} of {i}" for j in range(k)]) for i in range(n)]


def stored(folder: Path, kind: str = "pairs", n: int = 3, k: int = 2, **settings: Any) -> Store:
    """A store with items."""
    store = Store(folder / "labels.db", kind, **settings)
    store.add(items(n, k))
    return store


def sent(offered: Offered | None, annotator: str, answer: Any, key: str = "", **more: Any) -> Sent:
    """The label that a page would send of what it was offered."""
    assert offered is not None
    return Sent(annotator, offered.item, offered.lease, key or f"{annotator}-{offered.item}", answer, **more)


def say(store: Store, annotator: str, answer: Any, **more: Any) -> int:
    """Takes the next item and labels it."""
    return store.label(sent(store.offer(annotator), annotator, answer, **more))["label"]


def prefer(store: Store, annotator: str, wanted: str) -> int:
    """Takes the next pair and prefers the completion that begins like this, wherever it stands."""
    offered = store.offer(annotator)
    assert offered is not None
    place = next(i for i, c in enumerate(offered.completions) if str(c).startswith(wanted))
    return store.label(sent(offered, annotator, {"choice": place}))["label"]


@contextmanager
def site(store: Store, name: str = "anna") -> Iterator[str]:
    """The page of a store, served from a thread of this process; its address with the token."""
    listening = listen(0)
    port = listening.getsockname()[1]
    server = uvicorn.Server(_config(create_app(routes(store, name), token="secret", port=port)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/?token=secret"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
