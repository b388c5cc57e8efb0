"""Verdicts over pairs and scores: both orders, failures, cache; with a scripted backend and over HTTP."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError
from gro.judges import Cache, Case, Comparison, Endpoint, Judge, JudgeSettings, Reply
from gro.judges.judge import Keep
from judges.chat_server import ChatServer, Raw


def answers(question: str) -> tuple[str, ...]:
    """What stands behind the marks of the built-in templates."""
    return tuple(re.findall(r"\[\w{8} answer(?: [AB])?\]\n(.*?)(?=\n\[)", question, re.DOTALL))


class Scripted:
    """A backend that says what a function of the answers says."""

    breaks = True

    def __init__(self, say: Callable[..., str | None], **identity: Any) -> None:
        self.say, self.identity, self.asked = say, {"model": "scripted", **identity}, list[str]()

    def reply(self, questions: Sequence[str], keep: Keep) -> list[Reply]:
        found = []
        for question in questions:
            self.asked.append(question)
            text = self.say(*answers(question))
            found.append(Reply(text, "" if text is not None else "no connection"))
            keep(question, found[-1])
        return found

    def close(self) -> None:
        self.closed = True


def pairs(say: Callable[..., str | None], **keys: Any) -> Judge:
    return Judge(JudgeSettings(model="scripted", **keys), Scripted(say))


def longer(a: str, b: str) -> str:
    return f"Length.\nVerdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}"


def case(a: str, b: str) -> Case:
    return Case("Which?", (a, b))


def test_a_judge_that_sees_the_answers() -> None:
    judge = pairs(longer)
    found = judge.compare([case("long", "s"), case("s", "long"), case("one", "two")])
    assert [c.value for c in found] == [1, 0, 0.5]
    assert all(c.agreed and len(c.replies) == 2 for c in found)
    assert judge.counts == {"asked": 4, "cached": 0, "first": 2, "second": 2, "disagreed": 0}


def test_a_liking_for_the_first_place_cancels() -> None:
    judge = pairs(lambda a, b: "Verdict: A")
    found = judge.compare([case("good", "bad"), case("x", "y")])
    assert [(c.value, c.agreed) for c in found] == [(0.5, False)] * 2
    assert judge.counts["disagreed"] == 2
    assert (judge.counts["first"], judge.counts["second"]) == (4, 0)


def test_a_tie_in_one_order_only_is_a_tie() -> None:
    judge = pairs(lambda a, b: "Verdict: A" if a == "x" else "Verdict: tie")
    assert judge.compare([case("x", "y")])[0].value == 0.5
    assert judge.counts["disagreed"] == 1


def test_equal_answers_are_not_asked_about() -> None:
    judge = pairs(lambda a, b: "Verdict: A")
    assert judge.compare([case("same", "same")]) == [Comparison(0.5)]
    assert judge.counts["asked"] == 0


def test_an_unclear_verdict_is_no_zero() -> None:
    judge = pairs(lambda a, b: "Both are nice." if "odd" in (a, b) else None if "gone" in (a, b) else "Verdict: B")
    found = judge.compare([case("odd", "y"), case("gone", "y"), case("x", "y")])
    assert [c.value for c in found] == [None, None, 0.5]
    assert "the last line is no verdict" in found[0].problem
    assert found[1].problem == "no connection"
    assert (judge.counts["unclear"], judge.counts["silent"]) == (2, 2)


def test_one_order_that_fails_fails_the_comparison() -> None:
    judge = pairs(lambda a, b: "Verdict: A" if a == "x" else "hm")
    assert judge.compare([case("x", "y")])[0].value is None


def test_scores() -> None:
    judge = pairs(lambda answer: f"Score: {len(answer)}", kind="scores", scale=(0, 5))
    found = judge.rate([Case("p", ("four",)), Case("p", ("far too long",)), Case("p", ("",))])
    assert [r.value for r in found] == [4, None, 0]
    assert "expected a number from 0 to 5" in found[1].problem
    compared = judge.compare([case("four", "two"), case("two", "four"), case("one", "two"), case("x", "far too long")])
    assert [c.value for c in compared] == [1, 0, 0.5, None]


def test_the_scale_is_in_the_question() -> None:
    backend = Scripted(lambda answer: "Score: 2.5")
    judge = Judge(JudgeSettings(model="m", kind="scores", scale=(0, 2.5)), backend)
    assert judge.rate([Case("p", ("x",))])[0].value == 2.5
    assert "from 0 (useless or wrong) to 2.5" in backend.asked[0]


# --- cache ------------------------------------------------------------------------------------------------------------


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.db")
    with pairs(longer, cache=cache) as first:
        before = first.compare([case("long", "s"), case("long", "s"), case("s", "long")])
        assert first.counts["asked"] == 2, "the same two questions, three times"
    with pairs(lambda a, b: "nothing", cache=cache) as again:
        found = again.compare([case("long", "s")])
        assert found[0] == before[0]
        assert (again.counts["asked"], again.counts["cached"]) == (0, 2)
        assert again.compare([case("longer", "s")])[0].value is None, "another question"


def test_model_template_inputs_and_sampling_are_the_key(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ answer_a }} or {{ answer_b }}? {{ row.id }}")
    cache = str(tmp_path / "judge.db")

    def asked(row: int = 0, template: str | None = None, **identity: Any) -> int:
        settings = JudgeSettings(model="m", cache=cache, template=template)
        with Judge(settings, Scripted(lambda *answers: "Verdict: tie", **identity)) as judge:
            judge.compare([Case("p", ("x", "y"), {"id": row})])
            return judge.counts["asked"]

    assert asked() == 2
    assert asked() == 0
    assert asked(row=1) == 0, "the built-in template does not show it"
    assert asked(temperature=0.5) == 2
    assert asked(model="other") == 2
    assert asked(template=str(template)) == 2
    assert asked(template=str(template), row=1) == 2
    template.write_text("{{ answer_a }} or {{ answer_b }}? {{ row.id }}{# the same text of another template #}")
    assert asked(template=str(template)) == 2


def test_what_failed_is_asked_again(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.db")
    with pairs(lambda a, b: None, cache=cache) as judge:
        judge.compare([case("x", "y")])
    with pairs(lambda a, b: "hm", cache=cache) as judge:
        judge.compare([case("x", "y")])
        assert judge.counts["asked"] == 2
    with pairs(longer, cache=cache) as judge:
        assert judge.compare([case("x", "y")])[0].value is None, "an unclear reply is a reply"
        assert judge.counts["cached"] == 2


def test_replies_are_kept_as_they_come(tmp_path: Path) -> None:
    """The work ends in the middle; what was answered, and perhaps paid for, is not lost."""
    replies = iter(["Verdict: A", "Verdict: B"])

    def say(a: str, b: str) -> str:
        reply = next(replies, None)
        if reply is None:
            raise KeyboardInterrupt
        return reply

    cache = str(tmp_path / "judge.db")
    with pytest.raises(KeyboardInterrupt), pairs(say, cache=cache) as judge:
        judge.compare([case("x", "y"), case("z", "y")])
    with pairs(longer, cache=cache) as judge:
        judge.compare([case("x", "y"), case("z", "y")])
        assert (judge.counts["cached"], judge.counts["asked"]) == (2, 2)


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is not a database, but some notes, which must not be lost." * 20)
    with pytest.raises(GroError, match=r"notes\.txt cannot be used: file is not a database"):
        Cache(path)
    with pytest.raises(GroError, match="cannot be used"):
        Cache(tmp_path / "none" / "judge.db")
    assert path.read_text().startswith("This is not"), "left as it was"


def test_the_cache_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    path = tmp_path / "judge.db"
    with ChatServer(lambda request: "Verdict: tie") as server:
        settings = JudgeSettings(model="m", base_url=server.url, key_env="JUDGE_KEY", cache=str(path))
        with Judge(settings, Endpoint(settings)) as judge:
            judge.compare([case("x", "y")])
    rows = sqlite3.connect(path).execute("SELECT * FROM replies").fetchall()
    assert [reply for _, reply in rows] == ["Verdict: tie"] * 2
    assert all(b"sk-very-secret" not in p.read_bytes() for p in tmp_path.iterdir())


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_over_http() -> None:
    def script(request: Any) -> str | Raw:
        a, b = answers(request.question)
        if "down" in (a, b):
            return Raw(500)
        return "I will not say." if "odd" in (a, b) else longer(a, b)

    with ChatServer(script) as server:
        settings = JudgeSettings(model="m", base_url=server.url, retries=1)
        judge = Judge(settings, Endpoint(settings, sleep=lambda seconds: None))
        cases = [case("long", "s"), case("down", "s"), case("s", "long"), case("odd", "s"), case("</s>", "abc")]
        found = judge.compare(cases)
        assert [c.value for c in found] == [1, None, 0, None, 1]
        assert (judge.counts["silent"], judge.counts["unclear"]) == (2, 2)
        assert not any("</s>" in request.question for request in server.requests)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "judge.model: missing"),
        ({"model": "m", "modle": 1}, "judge.modle: unknown key, did you mean 'model'"),
        ({"model": "m", "kind": "pair"}, "judge.kind: found 'pair'"),
        ({"model": "m", "scale": [5, 1]}, "scale is the lowest and the highest score"),
        ({"model": "m", "verdict": "Verdict: A"}, "has 0 groups"),
        ({"model": "m", "verdict": "("}, "no regular expression"),
        ({"model": "m", "base_url": "localhost:8000"}, "base_url is http://host/path"),
        ({"model": "m", "base_url": "http://me:secret@host/v1"}, "give the key by key_env"),
        ({"model": "m", "key_env": "KEY"}, "key_env belongs to an endpoint"),
        ({"model": "m", "temperature": -1}, "judge.temperature: found -1"),
        ({"model": "m", "max_new_tokens": "9"}, "judge.max_new_tokens: found '9'"),
    ],
)
def test_settings_that_are_wrong(values: dict[str, Any], why: str) -> None:
    with pytest.raises(GroError, match=re.escape(why)) as caught:
        JudgeSettings.parse(values)
    assert "secret" not in str(caught.value)


def test_settings_from_plain_values() -> None:
    found = JudgeSettings.parse(
        {"model": "m", "kind": "scores", "scale": [0, 5], "base_url": "http://h/v1", "body": {"n": 1}}
    )
    assert found == JudgeSettings(model="m", kind="scores", scale=(0.0, 5.0), base_url="http://h/v1", body={"n": 1})
