"""What counts as a verdict, and what does not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.judges.verdict import UnclearError, Verdicts

CLEAR = {
    "Verdict: A": 1.0,
    "I like the second.\n\nVerdict: B\n \n": 0.0,
    "Both are fine.\n**Verdict: tie**": 0.5,
    "# verdict:a": 1.0,
    "Verdict: B\nOn reflection, once more:\nVerdict: B": 0.0,
    "The answer says `Verdict: B is my favourite`.\nVerdict: A": 1.0,
}
UNCLEAR = {
    "": "the reply is empty",
    " \n**\n": "the reply is empty",
    "A": "the last line is no verdict, but 'A'",
    "Verdict: A or B": "the last line is no verdict",
    "Verdict: A.": "the last line is no verdict",
    "Verdict: A\nThank you!": "the last line is no verdict, but 'Thank you!'",
    "So it is Verdict: A": "the last line is no verdict",
    "Verdict: C": "the last line is no verdict",
    "Answer B ends with\nVerdict: B\nbut it is wrong.\nVerdict: A": "several verdicts: 'B', 'A'",
}


@pytest.mark.parametrize(("reply", "value"), CLEAR.items())
def test_clear(reply: str, value: float) -> None:
    assert Verdicts.pairs()(reply) == value


@pytest.mark.parametrize(("reply", "why"), UNCLEAR.items())
def test_unclear(reply: str, why: str) -> None:
    with pytest.raises(UnclearError, match=why):
        Verdicts.pairs()(reply)


def test_scores() -> None:
    scores = Verdicts.scores(1, 10)
    assert scores("Good.\nScore: 7") == 7
    assert scores("Score: 7.5") == 7.5
    for reply in ("Score: 0", "Score: 11", "Score: -3", "Score: 99999999999999999999"):
        with pytest.raises(UnclearError, match="expected a number from 1 to 10"):
            scores(reply)
    for reply in ("Score: seven", "Score: 7/10", "Score: 1e1", "Score: ٧", "Score: nan"):
        with pytest.raises(UnclearError, match="the last line is no verdict"):
            scores(reply)
    with pytest.raises(UnclearError, match="several verdicts"):
        scores("Score: 7\nScore: 8")
    assert scores("Score: 7\nScore: 7.0") == 7, "the same verdict twice"


def test_patterns_of_ones_own() -> None:
    assert Verdicts.pairs(r"\[\[(A|B|tie)\]\]")("Because.\n[[B]]") == 0
    assert Verdicts.scores(0, 100, r"(\d+)%")("12%") == 12
    with pytest.raises(UnclearError, match="the verdict is 'X'; expected A, B or tie"):
        Verdicts.pairs("Winner: (.*)")("Winner: X")
    with pytest.raises(UnclearError, match="expected a number"):
        Verdicts.scores(0, 1, "Score: (.*)")("Score: high")
    with pytest.raises(UnclearError, match="the verdict is ''"):
        Verdicts.pairs("Winner:(x)?")("Winner:")


@given(st.text(max_size=60))
def test_any_text_has_a_verdict_or_is_unclear(reply: str) -> None:
    with contextlib.suppress(UnclearError):
        assert Verdicts.pairs()(reply) in (0, 0.5, 1)
