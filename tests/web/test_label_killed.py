"""G14: people label while the server is killed again and again; nothing acknowledged is lost or there twice."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from web.live import Person, Server


def killed(folder: Path, people: int, labels: int, kills: int) -> tuple[int, int, int]:
    """Acknowledged labels, those lost, those there twice."""
    data = folder / "data.jsonl"
    rows = ({"prompt": f"prompt {i}", "completions": ["a", "b"]} for i in range(people * labels))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server, stop = Server(folder, str(data)).start(), threading.Event()
    server.arguments = ()  # from now on it goes on with the file
    crowd = [Person(server, i, labels, stop) for i in range(people)]
    try:
        for person in crowd:
            person.start()
        for kill in range(kills):
            # Spread over the work and not over time, in the middle of whatever is going on then.
            while sum(len(p.acknowledged) for p in crowd) < people * labels * (kill + 0.5) / kills:
                assert not (wrong := [p.wrong for p in crowd if p.wrong]), wrong
                time.sleep(0.002)
            server.end(signal.SIGKILL)
            server.start()
        for person in crowd:
            person.join(240)
        assert not (wrong := [p.wrong for p in crowd if p.wrong]), wrong
    finally:
        stop.set()
        server.end()
    database = sqlite3.connect(folder / "labels.db")
    found = dict(database.execute("SELECT key, id FROM labels"))
    total, keys, pairs, items = database.execute(
        "SELECT count(*), count(DISTINCT key), count(DISTINCT item || annotator), count(DISTINCT item) FROM labels"
    ).fetchone()
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("SELECT count(*) FROM items WHERE done != 1").fetchone() == (0,)
    database.close()
    acknowledged = {key: number for person in crowd for key, number in person.acknowledged.items()}
    assert sum(person.repeated for person in crowd) == people * -(-labels // 5)
    lost = sum(found.get(key) != number for key, number in acknowledged.items())
    return len(acknowledged), lost, total - min(keys, pairs, items)


@pytest.mark.fault("W2", "W3")
@pytest.mark.timeout(900)
def test_a_killed_server_has_every_acknowledged_label_once(tmp_path):
    assert killed(tmp_path, people=10, labels=20, kills=4) == (200, 0, 0)


@pytest.mark.slow
@pytest.mark.fault("W2", "W3")
@pytest.mark.timeout(1800)
def test_fifty_people_and_fifty_kills(tmp_path):
    assert killed(tmp_path, people=50, labels=200, kills=50) == (10_000, 0, 0)
