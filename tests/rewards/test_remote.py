"""Rewards over HTTP: asked of a real server on this machine, which misbehaves in every way that its path names."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gro.errors import GroError
from gro.rewards import remote as remote_module
from gro.rewards.batch import Trouble
from gro.rewards.exchange import MOST_ANSWER
from gro.rewards.loading import load
from gro.rewards.pool import Pool
from gro.rewards.remote import RemoteError, remote

ASKED: Counter[str] = Counter()
"""Questions by path."""
SEEN: dict[str, Any] = {}
"""The latest question and its headers."""

BODIES = {
    "/text": b"fine",
    "/deep": b"[" * 100_000,
    "/list": b"[1.0, 2.0]",
    "/no-rewards": b'{"scores": [1.0, 2.0]}',
    "/one-number": b'{"rewards": 1.0}',
    "/short": b'{"rewards": [1.0]}',
    "/other-id": b'{"id": "older", "rewards": [1.0, 2.0]}',
    "/odd": b'{"rewards": [NaN, 1.5]}',
    "/inf": b'{"rewards": [Infinity, null]}',
    "/words": b'{"rewards": ["1.0", true]}',
    "/huge-number": b'{"rewards": [1e30, 2]}',
    "/binary": bytes(range(256)),
}


class Server(BaseHTTPRequestHandler):
    """Scores a completion by its length, unless its path says otherwise."""

    def do_POST(self) -> None:
        ASKED[self.path] += 1
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        SEEN.update(question=question, headers=dict(self.headers))
        good = json.dumps({"id": question["id"], "rewards": [float(len(c)) for c in question["completions"]]}).encode()
        if self.path in BODIES:
            self.reply(BODIES[self.path])
        elif self.path == "/busy-once" and ASKED[self.path] == 1:
            self.reply(b"wait", 429)
        elif self.path == "/error":
            self.reply(b"oh dear", 503)
        elif self.path == "/forbidden":
            self.reply(b"no key", 403)
        elif self.path == "/moved":
            self.reply(b"", 307, Location="/elsewhere")
        elif self.path == "/silent":
            time.sleep(30)
        elif self.path == "/drip":  # each byte in time, the whole never
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(1000):
                self.wfile.write(b" ")
                time.sleep(0.05)
        elif self.path == "/drip-last":  # the connection is let go of before the body comes
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(1000):
                self.wfile.write(b" ")
                time.sleep(0.05)
        elif self.path == "/drip-header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(1000):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif self.path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + good)
        elif self.path == "/closes":
            self.close_connection = True
        elif self.path == "/not-http":
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        elif self.path == "/huge":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (2 * MOST_ANSWER))
        else:
            self.reply(good)

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """In silence."""


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what is tested here."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "LONGEST_WAIT", 0.01)
    ASKED.clear()


def ask(url: str, completions: list[str], **params: Any) -> list[Any]:
    return remote(["p"] * len(completions), completions, url=url, **({"timeout": 20.0, "retries": 0} | params))


def test_question_and_answer(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its address alone, through a process; the header's value comes from the environment."""
    monkeypatch.setenv("MY_KEY", "hunter2")
    columns = {"prompts": ["p", "q"], "completions": ["a", "bbb"], "completion_ids": [[1], [2]], "answer": ["x", None]}
    with Pool(f"{address}/score?model=m", {"headers_env": {"X-Key": "MY_KEY"}}) as pool:
        assert pool.name == "remote"
        assert pool.score(columns).scores == {0: 1.0, 1: 3.0}
    number = SEEN["question"].pop("id")
    assert re.fullmatch(r"[0-9a-f]{32}", number)
    assert SEEN["question"] == {"prompts": ["p", "q"], "completions": ["a", "bbb"], "columns": {"answer": ["x", None]}}
    assert SEEN["headers"]["X-Key"] == "hunter2"
    assert SEEN["headers"]["Content-Type"] == "application/json"
    assert list(ASKED) == ["/score?model=m"]


def test_a_batch_is_asked_in_parts_and_put_together(address: str) -> None:
    completions = ["x" * n for n in range(1, 11)]
    columns = {"prompts": ["p"] * 10, "completions": completions, "answer": ["a"] * 10, "kind": ["k"] * 10}
    with Pool(f"{address}/parts", {"batch": 4, "send": ["kind"]}) as pool:
        batch = pool.score(columns)
    assert batch.scores == {row: row + 1.0 for row in range(10)}
    assert ASKED["/parts"] == 3
    assert set(SEEN["question"]["columns"]) == {"kind"}


FAULTS = {
    "/text": "the answer is not JSON: 'fine'",
    "/binary": "the answer is not JSON",
    "/deep": "the answer is not JSON",
    "/list": "the answer is not {\"rewards\": [...]}, but '[1.0, 2.0]'",
    "/no-rewards": 'the answer is not {"rewards": [...]}',
    "/one-number": 'the answer is not {"rewards": [...]}',
    "/short": "the answer has 1 rewards for 2 completions",
    "/other-id": "the answer has the id of another question",
    "/error": "503 Service Unavailable: 'oh dear'",
    "/forbidden": "403 Forbidden: 'no key'",
    "/moved": "redirects to '/elsewhere'; give that address",
    "/closes": "Remote end closed connection without response",
    "/cut": "the connection was closed within the answer",
    "/not-http": "SSH-2.0-OpenSSH",
    "/huge": "the answer is longer than 4 MB",
}


@pytest.mark.fault("R10")
@pytest.mark.parametrize("path", FAULTS)
def test_a_faulty_answer_fails_the_completions_and_says_why(address: str, path: str) -> None:
    for error in ask(address + path, ["a", "b"]):
        assert isinstance(error, RemoteError)
        assert FAULTS[path] in str(error)
        assert str(error).startswith(address + path)


@pytest.mark.fault("R10")
@pytest.mark.parametrize("path", ["/silent", "/drip", "/drip-last", "/drip-header"])
def test_an_answer_that_does_not_end_is_left_at_the_limit(address: str, path: str) -> None:
    began = time.monotonic()
    (error,) = ask(address + path, ["a"], timeout=0.3)
    assert "no whole answer in 0.3 s" in str(error)
    assert 0.3 <= time.monotonic() - began < 0.3 + 10


@pytest.mark.fault("R10")
def test_what_may_pass_is_tried_again(address: str) -> None:
    assert ask(f"{address}/busy-once", ["a"], retries=1) == [1.0]
    assert ASKED["/busy-once"] == 2
    (error,) = ask(f"{address}/error", ["a"], retries=2)
    assert "(3 attempts)" in str(error)
    assert ASKED["/error"] == 3
    for path in ("/forbidden", "/moved", "/short"):
        ask(address + path, ["a", "b"], retries=5)
        assert ASKED[path] == 1
    assert ASKED["/elsewhere"] == 0
    (error,) = ask("http://127.0.0.1:9/", ["a"], retries=1)  # the discard port: nobody listens
    assert "Connection refused (2 attempts)" in str(error)


@pytest.mark.fault("R2", "R10")
def test_values_are_looked_at_one_by_one(address: str) -> None:
    """What is no reward fails its own completion; null does not apply; the others keep theirs."""
    expected: dict[str, list[Any]] = {
        "/odd": ["returned float nan, which is not a reward", 1.5],
        "/inf": ["returned float inf, which is not a reward", None],
        "/words": ["returned str '1.0', which is not a reward", "returned bool True, which is not a reward"],
        "/huge-number": ["returned float 1e+30, beyond ±1e+06, which is not a reward", 2.0],
    }
    for path, wanted in expected.items():
        with Pool(address + path, {"retries": 0}) as pool:
            scores = pool.score({"prompts": ["p", "p"], "completions": ["a", "b"]}).scores
        assert [s.message if isinstance(s, Trouble) else s for s in scores.values()] == wanted


@pytest.mark.fault("R10")
def test_a_failure_is_told_once_and_the_batch_is_not_repeated(address: str) -> None:
    with Pool(f"{address}/error", {"retries": 0}) as pool:
        scores = pool.score({"prompts": ["p"] * 3, "completions": ["a", "b", "c"]}).scores
    message = f"RemoteError: {address}/error: 503 Service Unavailable: 'oh dear'"
    assert scores == dict.fromkeys(range(3), Trouble("raised", message))
    assert ASKED["/error"] == 1


@pytest.mark.fault("R10")
def test_the_whole_call_has_a_limit() -> None:
    """Three attempts of 10 s, waits of at most 0.01 s here, and two seconds."""
    assert load("http://host/score").time_limit == pytest.approx(32.02)
    assert load("https://host/score", {"timeout": 3, "retries": 0}).time_limit == pytest.approx(5)
    assert load("http://host/score", {"batch": 7}).batch == 7


@pytest.mark.parametrize(
    ("url", "params", "message"),
    [
        ("http://", {}, "url is http://host/path or https://host/path, not 'http://'"),
        ("http://host:port/", {}, "Port could not be cast"),
        ("http://me:secret@host/", {}, "url has a name or password in it; give it by headers_env"),
        ("http://host/", {"timeout": 0}, "timeout is a number of seconds above 0, not 0"),
        ("http://host/", {"timeout": "5"}, "timeout is a number of seconds above 0, not '5'"),
        ("http://host/", {"retries": -1}, "retries is a whole number from 0 to 20, not -1"),
        ("http://host/", {"batch": 0}, "batch is a whole number above 0, not 0"),
        ("http://host/", {"headers_env": "KEY"}, "headers_env is a mapping"),
        ("http://host/", {"headers_env": {"X-Key": "NOT_SET"}}, "headers_env.X-Key: there is no environment variable"),
        ("http://host/", {"timout": 5}, "reward 'remote' has no parameter 'timout'; did you mean 'timeout'?"),
    ],
)
def test_wrong_parameters_are_refused_at_once(url: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(GroError, match=re.escape(message)) as caught:
        load(url, params)
    assert "secret" not in str(caught.value)


def test_what_cannot_be_sent_is_named(address: str) -> None:
    (error,) = remote(["p"], ["a"], url=address, answer=[{1, 2}])
    assert "not JSON serializable" in str(error)
    with pytest.raises(ValueError, match="send: no column 'gold' in the data; it has answer"):
        remote(["p"], ["a"], url=address, send=["gold"], answer=["x"])
