"""Asking a judge: pairs in both orders, scores, replies from the cache, failures counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gro.judges.cache import Cache
from gro.judges.spec import JudgeSettings
from gro.judges.template import PAIRS, SCORES, Template
from gro.judges.verdict import UnclearError, Verdicts

CUT_OFF = "the reply was cut off at max_new_tokens"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said to one question, or why it said nothing."""

    text: str | None
    problem: str = ""
    """Why there is no text; where there is one, what may be wrong with it (it was cut off)."""


Keep = Callable[[str, Reply], None]
"""(question, reply)"""


class Backend(Protocol):
    """Something that answers questions."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and sampling: what the replies depend on besides the question.  Never a key."""
        ...

    @property
    def breaks(self) -> bool:
        """Names of special tokens in a question might become special tokens: they have to be broken."""
        ...

    def reply(self, questions: Sequence[str], keep: Keep) -> list[Reply]:
        """A reply to each question, in their order; `keep` is called with each as it comes, from any thread."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with answers to be judged: two for a comparison, one for a score.

    >>> Case("What is 2+2?", ("4", "It is 5."))
    """

    prompt: Any
    """Text, or messages."""
    answers: tuple[str, ...]
    row: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which of two answers is better."""

    value: float | None
    """1: the first.  0: the second.  ½: a tie, or the orders disagree.  None: the judge failed."""
    agreed: bool = True
    """Both orders gave the same verdict."""
    replies: tuple[Reply, ...] = ()
    """With the first answer first, and with the second first; none where the answers are equal."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Rating:
    """How good an answer is."""

    value: float | None
    """On the judge's scale.  None: the judge failed.  It is never a 0."""
    replies: tuple[Reply, ...] = ()
    problem: str = ""


class Judge:
    """A judge with its template, its way of reading verdicts, and its cache.

    >>> judge = Judge(JudgeSettings(model="m", base_url="http://localhost:8000/v1"), Endpoint(settings))
    >>> judge.compare([Case("What is 2+2?", ("4", "5"))])[0].value
    1.0
    """

    def __init__(self, settings: JudgeSettings, backend: Backend) -> None:
        """Raises GroError for a template or cache that cannot be used."""
        self.settings, self._backend = settings, backend
        pairs = settings.kind == "pairs"
        self._template = Template.read(settings.template) if settings.template else Template(PAIRS if pairs else SCORES)
        self._verdicts = (
            Verdicts.pairs(settings.verdict) if pairs else Verdicts.scores(*settings.scale, settings.verdict)
        )
        self._cache = Cache(settings.cache) if settings.cache else None
        self.counts: Counter[str] = Counter()
        """Since the beginning: asked, cached, silent (no reply came), unclear (no verdict in it); of comparisons
        disagreed (the two orders do not agree) and first (verdicts for the answer that stood first)."""

    def compare(self, cases: Sequence[Case]) -> list[Comparison]:
        """Each case's two answers, asked in both orders, so that a liking for the first place cancels.

        Orders that disagree are a tie.  Answers that are the same are a tie without a question.  A judge of scores
        rates both answers, and the higher score is the better one.
        """
        if self.settings.kind == "scores":
            return self._compare_scores(cases)
        different = [case for case in cases if case.answers[0] != case.answers[1]]
        questions = [self._question(case, order) for case in different for order in (case.answers, case.answers[::-1])]
        replies = self._replies(questions)
        found = iter([self._compared(a, b) for a, b in zip(replies[::2], replies[1::2], strict=True)])
        return [next(found) if case.answers[0] != case.answers[1] else Comparison(0.5) for case in cases]

    def rate(self, cases: Sequence[Case]) -> list[Rating]:
        """A score for each case's single answer."""
        assert self.settings.kind == "scores", "a judge of pairs gives no scores"
        low, high = (int(x) if x == int(x) else x for x in self.settings.scale)
        questions = [self._render(case, {"answer": case.answers[0], "low": low, "high": high}) for case in cases]
        return [Rating(*self._verdict(reply)) for reply in self._replies(questions)]

    def close(self) -> None:
        """Closes the cache and what answers."""
        if self._cache is not None:
            self._cache.close()
        self._backend.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _question(self, case: Case, order: Sequence[str]) -> str:
        return self._render(case, {"answer_a": order[0], "answer_b": order[1]})

    def _render(self, case: Case, values: Mapping[str, Any]) -> str:
        return self._template.render(case.prompt, values, case.row, broken=self._backend.breaks)

    def _replies(self, questions: Sequence[str]) -> list[Reply]:
        """Of the cache or the model; equal questions are asked once."""
        keys = {question: self._key(question) for question in questions}
        known = {
            q: Reply(text) for q, key in keys.items() if self._cache and (text := self._cache.get(key)) is not None
        }
        new = [question for question in keys if question not in known]
        self.counts["cached"] += len(known)
        self.counts["asked"] += len(new)

        def keep(question: str, reply: Reply) -> None:
            if self._cache is not None and reply.text is not None:
                self._cache.put(keys[question], reply.text)

        known |= dict(zip(new, self._backend.reply(new, keep) if new else [], strict=True))
        return [known[question] for question in questions]

    def _key(self, question: str) -> str:
        asked = {"by": dict(self._backend.identity), "template": self._template.sha256, "question": question}
        return Cache.key(asked)

    def _verdict(self, reply: Reply) -> tuple[float | None, tuple[Reply, ...], str]:
        """Value, reply, and why there is no value."""
        if reply.text is None:
            self.counts["silent"] += 1
            return None, (reply,), reply.problem
        try:
            return self._verdicts(reply.text), (reply,), ""
        except UnclearError as error:
            self.counts["unclear"] += 1
            return None, (reply,), f"{error}{'; ' if reply.problem else ''}{reply.problem}"

    def _compared(self, straight: Reply, turned: Reply) -> Comparison:
        (a, _, problem_a), (b, _, problem_b) = self._verdict(straight), self._verdict(turned)
        replies = (straight, turned)
        if a is None or b is None:
            return Comparison(None, replies=replies, problem=problem_a or problem_b)
        self.counts["first"] += (a == 1) + (b == 1)
        self.counts["second"] += (a == 0) + (b == 0)
        agreed = a == 1 - b
        self.counts["disagreed"] += not agreed
        return Comparison(a if agreed else 0.5, agreed, replies)

    def _compare_scores(self, cases: Sequence[Case]) -> list[Comparison]:
        ratings = self.rate([Case(case.prompt, (answer,), case.row) for case in cases for answer in case.answers])
        found = []
        for a, b in zip(ratings[::2], ratings[1::2], strict=True):
            replies = (*a.replies, *b.replies)
            if a.value is None or b.value is None:
                found.append(Comparison(None, replies=replies, problem=a.problem or b.problem))
            else:
                found.append(Comparison(0.5 + 0.5 * ((a.value > b.value) - (a.value < b.value)), True, replies))
        return found
