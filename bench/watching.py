"""How `gro watch` takes many long runs: `python bench/watching.py --runs 30 --steps 10000 --metrics 40`.

Makes such runs, and measures: reading them all, a look at them when nothing happened and when one recorded a step, the
answers that a page asks for, and how long the page takes to draw them, where playwright has a browser or CHROMIUM
names one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request

from gro.runs import Run
from gro.runs.database import insert_metrics
from gro.web.app import create_app
from gro.web.serve import Server, listen
from gro.web.watch.routes import Watching

_USUAL = ("reward", "kl", "loss", "entropy", "grad_norm", "completions/mean_length")
_SEEDS = 3


def main() -> None:
    """Prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("runs", 30), ("steps", 10_000), ("metrics", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.runs):
            _make(Path(folder) / f"run-{number:02}", number, asked.steps, asked.metrics)
        watching = Watching([folder])
        _told("reading all of them", _until(watching.board.refresh))
        _told("a look where nothing happened", _timed(watching.board.refresh))
        with Run.open(Path(folder) / "run-00", _config(0)) as run:
            watching.board.refresh()
            run.record(asked.steps + 1, dict.fromkeys(_USUAL, 0.0))
            _told("a look after a step of one", _timed(watching.board.refresh))
        watching.board.refresh()
        for label, query in (
            ("usual panels", ""),
            ("usual panels, every seed", "&seeds=0"),
            ("a panel for every metric", "&every=1"),
        ):
            answers: list[Any] = []
            seconds = _timed(lambda query=query, answers=answers: answers.append(_panels(watching, query)))
            _told(f"answer: {label}", seconds, f"{len(answers[0].body) / 1e6:.1f} MB")
        _browser(watching)


def _config(number: int) -> dict[str, Any]:
    return {"algorithm": {"name": f"algorithm {number // _SEEDS}"}, "seed": number % _SEEDS}


def _make(path: Path, number: int, steps: int, metrics: int) -> None:
    noise = np.random.default_rng(number)
    names = [*_USUAL, *(f"more/{i:02}" for i in range(metrics))][:metrics]
    values = np.cumsum(noise.normal(size=(steps, len(names))), 0) / 100 + noise.normal(size=(steps, len(names))) / 10
    with Run.open(path, _config(number)) as run, run._database.transaction("fill") as database:
        for step, row in enumerate(values, 1):
            insert_metrics(database, step, dict(zip(names, row.tolist(), strict=True)))


def _panels(watching: Watching, query: str) -> Any:
    told = "&".join(f"run={name}" for name in watching.board.runs) + query
    return watching._panels(Request({"type": "http", "query_string": told.encode(), "headers": []}))


def _browser(watching: Watching) -> None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("no playwright: the page was not measured")
        return
    listening = listen(0)
    port = listening.getsockname()[1]
    server = Server(create_app(watching.routes, token="x", port=port), watching.end)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        begun = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/watch?token=x")
        page.wait_for_selector(".curve")
        _told("page: from opening to curves", time.perf_counter() - begun)
        _told("page: drawing all panels again", page.evaluate(_REDRAW) / 1000)
        browser.close()
    server.should_exit = True
    thread.join()


_REDRAW = """() => {
  const find = document.querySelector('#find');
  const type = (text) => { find.value = text; find.dispatchEvent(new Event('input')); };
  type('no such panel');
  const begun = performance.now();
  type('');
  document.body.getBoundingClientRect();
  return performance.now() - begun;
}"""


def _timed(do: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def _until(done: Callable[[], bool]) -> float:
    begun = time.perf_counter()
    while not done():
        pass
    return time.perf_counter() - begun


def _told(what: str, seconds: float, more: str = "") -> None:
    print(f"{what:40} {seconds:8.3f} s  {more}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
