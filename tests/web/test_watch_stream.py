"""The stream of news of `gro watch`: what it tells while another process trains, how many may listen, how it ends."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import TOKEN, Served
from watched_runs import LONG, News, config, rewards, soon, watched

from gro.runs import Run
from gro.web.guard import HEADERS
from gro.web.watch.board import Board
from gro.web.watch.stream import MOST, Stream

WRITER = """
import sys
from gro.runs import Run
with Run.open(sys.argv[1], {"algorithm": {"name": "grpo"}, "training": {"steps": 20}}) as run:
    for step in range(1, 21):
        run.record(step, {"reward": step / 10})
        if step in (7, 14):
            run.event("warning", f"alarm at {step}", step=step)
    sys.stdin.read()
    run.finish()
"""


def test_news_of_a_run_in_another_process(tmp_path: Path) -> None:
    """It appears, its steps come in order, its alarms once, and its end."""
    with watched(tmp_path) as (server, _), News(server.port) as news:
        assert news.next() == ("runs", {"runs": []})
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "run")], stdin=subprocess.PIPE)
        try:
            # Where it is faster than the first look at it, "runs" has told everything.
            found = news.until(
                lambda kind, data: kind in ("runs", "steps") and data["runs"] and data["runs"][0]["step"] == 20
            )
            last = found[-1][1]["runs"][0]
            if last["alarms"] < 2:
                found += news.until(lambda kind, data: kind == "steps" and data["runs"][0]["alarms"] == 2)
            assert (last["status"], last["of"], last["algorithm"]) == ("running", 20, "grpo")
            assert found[0][0] == "runs"
            assert [run["name"] for run in found[0][1]["runs"]] == ["run"]
            told = [run["step"] or 0 for kind, data in found if kind in ("runs", "steps") for run in data["runs"]]
            assert told == sorted(told)
        finally:
            writer.communicate(timeout=LONG)
        end = news.until(lambda kind, data: kind == "steps" and data["runs"][0]["status"] == "finished")
        assert end[-1][1]["runs"][0]["value"] == 2.0
    assert writer.returncode == 0


def test_every_alarm_is_told_once(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config()) as run:
        run.event("warning", "before anybody looked", step=0)
        run.record(1, {"reward": 1.0})
        with watched(tmp_path) as (server, _), News(server.port) as news:
            news.until(lambda kind, data: kind in ("runs", "steps") and data["runs"] and data["runs"][0]["step"] == 1)
            for step in (2, 3):
                run.event("error", f"alarm {step}", step=step)
                run.record(step, {"reward": float("nan")})
            found: list[tuple[str, Any]] = []
            while sum(kind == "alarm" for kind, _ in found) < 4:
                found.append(news.next())
            told = [(data["run"], data["level"], data["message"]) for kind, data in found if kind == "alarm"]
            assert told == [
                ("run", "error", "alarm 2"), ("run", "warning", "reward is nan at step 2"),
                ("run", "error", "alarm 3"), ("run", "warning", "reward is nan at step 3"),
            ]  # fmt: skip


def test_its_headers_and_its_heartbeat(tmp_path: Path) -> None:
    with watched(tmp_path, heartbeat=0.05) as (server, _), News(server.port) as news:
        assert news.answer.status == 200
        assert news.answer.getheader("content-type", "").startswith("text/event-stream")
        assert all(news.answer.getheader(name) == value for name, value in HEADERS.items())
        assert [news.next()[0] for _ in range(3)] == ["runs", "comment", "comment"]
        asked = urllib.request.Request(f"http://127.0.0.1:{server.port}/api/watch/stream", method="HEAD")
        asked.add_header("cookie", f"gro_{server.port}={TOKEN}")
        with urllib.request.urlopen(asked, timeout=LONG) as answer:  # ends, and takes no place
            assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.fault("W7")
def test_so_many_pages_and_no_more(tmp_path: Path) -> None:
    rewards(tmp_path / "run", 1.0)
    with watched(tmp_path, heartbeat=0.05) as (server, watching):
        pages = [News(server.port) for _ in range(MOST)]
        assert [page.next()[0] for page in pages] == ["runs"] * MOST
        assert len(watching.stream._pages) == MOST
        assert refused(server) == (503, f"{MOST} pages are open already: close one")
        assert server.get("/api/watch/runs")[0] == 200  # everything else is answered
        pages.pop().__exit__()
        soon(lambda: len(watching.stream._pages) < MOST)  # who has gone is noticed
        with News(server.port) as news:
            assert news.next()[0] == "runs"
            for page in pages:
                page.__exit__()
            soon(lambda: len(watching.stream._pages) == 1)
        soon(lambda: watching.stream._poller is None)  # nobody looks, so nothing is looked at
        with News(server.port) as news:  # and it begins again
            assert news.next()[1]["runs"][0]["value"] == 1.0


def refused(server: Served) -> tuple[int, str]:
    status, found = server.get("/api/watch/stream")
    return status, found["error"]


def test_the_end_of_the_server_ends_the_streams(tmp_path: Path) -> None:
    with watched(tmp_path) as (server, _):
        pages = [News(server.port) for _ in range(3)]
        assert [page.next()[0] for page in pages] == ["runs"] * 3
    assert [page.next() for page in pages] == [("end", None)] * 3


def test_a_page_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    """What waits for it stays bounded; it asks again when it can."""
    rewards(tmp_path / "run", 1.0)
    board = Board([tmp_path])
    board.refresh()
    known = board.known()["run"]

    async def tell() -> None:
        stream, page = Stream(board), asyncio.Queue[str | None]()
        stream._told = {"run": known}
        stream._pages.add(page)
        for version in range(1, 257):
            stream._tell({"run": replace(known, version=known.version + version)})
            assert page.qsize() == version
        stream._tell({"run": replace(known, version=known.version + 257)})
        assert page.qsize() == 1
        news = stream.news(page)
        assert (await anext(news)).startswith("event: runs")
        with pytest.raises(StopAsyncIteration):
            await anext(news)

    asyncio.run(tell())


def test_ctrl_c_ends_the_command_with_a_page_open(tmp_path: Path) -> None:
    """In time, so that nothing has to be torn down: that would be said."""
    rewards(tmp_path / "runs" / "first", 1.0, 2.0)
    for how in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-u", "-m", "gro", "watch", "runs"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            address = next(line for line in process.stdout if line.startswith("http")).strip()
            port, token = int(address.split(":")[2].split("/")[0]), address.split("token=")[1]
            with News(port, token) as news:
                found = news.until(lambda kind, data: data["runs"] and data["runs"][0]["step"] == 2)
                assert found[-1][1]["runs"][0]["name"] == "first"
                assert found[-1][1]["runs"][0]["inspect"] == "gro inspect runs/first"
                process.send_signal(how)
                assert news.until_end() == ("end", None)
        finally:
            if process.poll() is None:
                process.send_signal(how)
            _, errors = process.communicate(timeout=LONG)
        assert (process.returncode, errors) == (0 if how == signal.SIGINT else -how, "")


def test_events_are_json_on_one_line(tmp_path: Path) -> None:
    """Whatever an alarm says: a line break would end the event and begin another."""
    message = "x\n\nevent: alarm\ndata: {}\r\n\u2028 ü 😀"
    with Run.open(tmp_path / "run", config()) as run, watched(tmp_path) as (server, _), News(server.port) as news:
        run.record(1, {"reward": 1.0})
        news.until(lambda kind, data: kind in ("runs", "steps") and data["runs"] and data["runs"][0]["step"] == 1)
        run.event("warning", message, step=1)
        found = news.until(lambda kind, data: kind == "alarm")
        assert [kind for kind, _ in found].count("alarm") == 1
        assert found[-1][1]["message"] == message
