"""Questions over HTTP, to a real server: every way in which one fails, and that the key stays where it is."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gro.errors import GroError
from gro.judges import Endpoint, JudgeSettings, Reply
from judges.chat_server import ChatServer, Raw, Request, completion

KEY = "sk-very-secret"


def settings(server: ChatServer, **keys: Any) -> JudgeSettings:
    return JudgeSettings(**{"model": "m", "base_url": server.url, "retries": 3, **keys})


def ask(endpoint: Endpoint, *questions: str) -> list[Reply]:
    return endpoint.reply(questions, lambda question, reply: None)


def in_turn(*answers: str | Raw) -> Callable[[Request], str | Raw]:
    """One answer after the other."""
    left = iter(answers)
    return lambda request: next(left)


def test_what_is_sent_and_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    with ChatServer(lambda request: f"I was asked: {request.question}") as server:
        body = {"max_tokens": None, "max_completion_tokens": 9, "top_p": 0.5}
        endpoint = Endpoint(settings(server, key_env="JUDGE_KEY", temperature=0.3, seed=4, body=body))
        assert ask(endpoint, "Ünï\ud800code?") == [Reply("I was asked: Ünï?code?")]
        (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert {k: v for k, v in request.body.items() if k != "messages"} == {
        "model": "m", "temperature": 0.3, "seed": 4, "max_completion_tokens": 9, "top_p": 0.5
    }  # fmt: skip
    assert KEY not in repr(endpoint.identity)
    assert KEY not in repr(settings(server, key_env="JUDGE_KEY"))


def test_replies_are_in_the_order_of_the_questions() -> None:
    """The first question is answered when the second reply has been kept."""
    others, second, kept = threading.Barrier(3), threading.Event(), list[str]()

    def script(request: Request) -> str:
        others.wait(20)  # all three are under way at once
        if request.question == "0":
            second.wait(20)
        return f"reply {request.question}"

    def keep(question: str, reply: Reply) -> None:
        kept.append(question)
        if question == "1":
            second.set()

    with ChatServer(script) as server:
        found = Endpoint(settings(server, parallel=3)).reply(["0", "1", "2"], keep)
    assert [r.text for r in found] == ["reply 0", "reply 1", "reply 2"]
    assert sorted(kept) == ["0", "1", "2"]
    assert kept.index("1") < kept.index("0"), "each is kept as it comes"


BUSY = Raw(429, b"slow down", {"Retry-After": "7"})
HICCUPS = {
    "busy": BUSY,
    "failing": Raw(500, b"oh"),
    "bad gateway": Raw(502),
    "no JSON": Raw(body=b"<html>"),
    "no choices": Raw(body=b'{"choices": []}'),
    "another shape": Raw(body=b'{"choices": [7]}'),
    "no text": Raw(body=completion(None)),
    "a list": Raw(body=b"[[[[]]]]"),
    "deep": Raw(body=b"[" * 100_000),
    "cut short": Raw(body=b'{"choices"', announce=1000),
}


@pytest.mark.parametrize("hiccup", HICCUPS.values(), ids=list(HICCUPS))
def test_a_hiccup_is_asked_again(hiccup: Raw) -> None:
    waits: list[float] = []
    with ChatServer(in_turn(hiccup, hiccup, "Verdict: A")) as server:
        found = ask(Endpoint(settings(server), sleep=waits.append), "?")
        assert len(server.requests) == 3
    assert found == [Reply("Verdict: A")]
    assert waits == ([7.0, 7.0] if hiccup is BUSY else [0.5, 1.0])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Raw(500, b"oh"), "500 Internal Server Error: 'oh' (4 attempts)"),
        (Raw(429, b""), "429 Too Many Requests: '' (4 attempts)"),
        (Raw(body=b"<html>"), "the answer is no chat completion, but '<html>' (4 attempts)"),
    ],
)
def test_in_the_end_it_is_a_failure_and_no_reply(answer: Raw, why: str) -> None:
    waits: list[float] = []
    with ChatServer(lambda request: answer) as server:
        (found,) = ask(Endpoint(settings(server), sleep=waits.append), "?")
        assert len(server.requests) == 4
        assert found == Reply(None, f"{server.url}/chat/completions: {why}")
    assert waits == [0.5, 1.0, 2.0]


def test_no_wait_is_longer_than_a_minute() -> None:
    waits: list[float] = []
    with ChatServer(
        in_turn(Raw(429, headers={"Retry-After": "1e9"}), Raw(503, headers={"Retry-After": "soon"}), "x")
    ) as s:
        ask(Endpoint(settings(s), sleep=waits.append), "?")
    assert waits == [60.0, 1.0]


def test_a_question_that_is_refused_is_not_asked_again() -> None:
    with ChatServer(lambda r: Raw(400, b"too long") if r.question == "long" else "fine") as server:
        found = ask(Endpoint(settings(server)), "long", "short")
        assert len(server.requests) == 2
    assert found[0].text is None
    assert "400 Bad Request: 'too long'" in found[0].problem
    assert found[1] == Reply("fine")


@pytest.mark.parametrize(
    ("status", "why"), [(401, "it refuses the key"), (403, "it refuses the key"), (404, "no such address or model")]
)
def test_what_every_question_would_meet_stops_the_work(status: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with ChatServer(lambda request: Raw(status, f"wrong key {KEY}".encode())) as server:
        with pytest.raises(GroError, match=why) as caught:
            ask(Endpoint(settings(server, key_env="JUDGE_KEY", parallel=1)), *map(str, range(50)))
        assert len(server.requests) < 50, "the others are not asked"
    assert KEY not in str(caught.value)


def test_the_key_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with ChatServer(lambda request: "stolen") as thief:
        moved = Raw(307, headers={"Location": f"{thief.url}/chat/completions"})
        with ChatServer(lambda request: moved) as server, pytest.raises(GroError, match="redirects to"):
            ask(Endpoint(settings(server, key_env="JUDGE_KEY")), "?")
        assert thief.requests == []
    echo = Raw(500, f"you sent Bearer {KEY}".encode())
    with ChatServer(lambda request: echo) as server:
        (found,) = ask(Endpoint(settings(server, key_env="JUDGE_KEY", retries=0)), "?")
    assert "you sent Bearer …" in found.problem


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(GroError, match="there is no environment variable 'NO_SUCH_KEY'"):
        Endpoint(JudgeSettings(model="m", base_url="http://localhost/v1", key_env="NO_SUCH_KEY"))


def test_time_outs() -> None:
    over = threading.Event()
    with ChatServer(lambda request: Raw(hang=over)) as server:
        (found,) = ask(Endpoint(settings(server, timeout=0.3, retries=1), sleep=lambda s: None), "?")
        over.set()
    assert found.text is None
    assert "no whole answer in 0.3 s (2 attempts)" in found.problem


def test_an_answer_that_drips_has_an_end() -> None:
    """Every byte comes in time, but the answer would take minutes."""
    with ChatServer(lambda request: Raw(body=completion("x" * 2000), drip=True)) as server:
        (found,) = ask(Endpoint(settings(server, timeout=0.5, retries=0)), "?")
    assert "no whole answer in 0.5 s" in found.problem


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tried = itertools.count()
    endpoint = Endpoint(
        JudgeSettings(model="m", base_url=f"http://127.0.0.1:{port}/v1", retries=2), sleep=lambda s: next(tried)
    )
    (found,) = ask(endpoint, "?")
    assert "refused" in found.problem
    assert next(tried) == 2


def test_a_reply_that_was_cut_off_says_so() -> None:
    with ChatServer(lambda request: Raw(body=completion("I think", "length"))) as server:
        (found,) = ask(Endpoint(settings(server)), "?")
    assert found == Reply("I think", "the reply was cut off at max_new_tokens")


def test_half_a_surrogate_is_text_that_can_be_kept() -> None:
    with ChatServer(lambda request: "half \ud83d and whole 🙂") as server:
        (found,) = ask(Endpoint(settings(server)), "?")
    assert found.text == "half ? and whole 🙂"
