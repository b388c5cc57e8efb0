"""People as a reward: what they say of the policy's answers, asked while the run waits for it.

The answers of a step go to the file of labels in the run's directory, `gro label RUN` shows them, and what was said of
them is their reward, from 0 to 1.  Or people are made up from another reward (`gro.raters.simulated`); then everything
else is the same.

An item is known by its texts, so the same answers are never asked about twice: a run that goes on after a kill samples
the same ones again and finds what was said of them meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from gro.errors import Interrupted
from gro.labels.answers import rewards, worths
from gro.labels.items import Item, digest
from gro.labels.store import Store
from gro.labels.used import Answers, ask, begin, missing, simulate, use
from gro.raters import simulated
from gro.raters.spec import HUMAN, HumanSettings, Simulated
from gro.rewards.batch import Batch, Score, Trouble
from gro.rewards.functions import TrainerState
from gro.rewards.pool import Pool
from gro.rewards.rewards import INSIDE, Scoring
from gro.rewards.spec import RewardSpec

RATINGS = "ratings.db"
"""The file of labels in a run's directory."""
TIE = 0.5
"""What completions are worth that there is nothing to compare with: their texts are all the same."""
_POLL = 0.25
"""Seconds between two looks."""


def human(
    kind: Literal["score5", "score10", "pairs", "best", "ranking"] = "score5",
    together: int | None = None,
    per_item: int = 1,
    simulated: Mapping[str, Any] | None = None,
) -> list[float | None]:
    """What people say, from 0 to 1, in the page of `gro label RUN`: the run waits for it.

    kind: what is asked.
    together: completions of a group that are shown at once; None: one to be scored, the whole group to be compared.
    per_item: people that each of them waits for; the reward is their mean.
    simulated: raters that are made from another reward: {reward: ..., raters: 3, spread: 0, ...}.
    """
    raise AssertionError("it is made by the job that uses it: Rewards(inside=...)")


@dataclass
class Asking:
    """How a job asks people."""

    labels: Path
    """The file of labels."""
    group_size: int
    seed: int
    """Of the sides on which completions are shown, and of simulated raters."""
    how: str = ""
    """What somebody has to do who wants to answer."""
    says: Callable[[str], object] | None = None
    """Told what is waited for, "" for nothing any more.  None: the job has not come so far, and nobody is asked."""
    at_once: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    """Around the waiting: in it, whoever ends the job does not wait for a step to end."""
    waited: float = 0.0
    """Seconds so far."""
    asked: Callable[[], str | None] = lambda: None
    """Whether this one of several processes is to stop, and because of what."""
    stop: str | None = None
    """Why nobody is waited for any more."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Completions of a group that are shown together, each text once."""

    item: Item
    rows: Mapping[str, Sequence[int]]
    """Places in the batch by the hash of the text."""


class Human:
    """What scores in place of worker processes."""

    name = HUMAN

    def __init__(self, settings: HumanSettings, asking: Asking, inner: Inner | None = None) -> None:
        """inner: where people are simulated, what they would say without noise."""
        self._settings, self._asking, self._inner = settings, asking, inner
        self._together = settings.shown(asking.group_size)
        self._stopped = threading.Event()
        self._store: Store | None = None

    def score(self, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> Batch:
        """Waits until enough people have answered.  A skip gives no reward."""
        inner: dict[int, Score] = {} if self._inner is None else self._inner.score(columns, state)
        if self._asking.says is None:
            return Batch(columns, state, deque(), {row: inner.get(row) for row in range(len(columns["completions"]))})
        scores: dict[int, Score] = {row: value for row, value in inner.items() if not isinstance(value, float)}
        found = list(pieces(columns, self._together, leave_out=scores))
        fewest = self._settings.asked.fewest
        items = {piece.item.id: piece for piece in found if len(piece.rows) >= fewest}
        answers = self._answers(items, inner) if items else {}
        for piece in found:
            said = self._said(piece, answers) if len(piece.rows) >= fewest else dict.fromkeys(piece.rows, TIE)
            scores |= {row: said[sha] for sha, rows in piece.rows.items() for row in rows}
        return Batch(columns, state, deque(), scores)

    def stop_waiting(self) -> None:
        """Also of another thread."""
        self._stopped.set()

    def close(self) -> None:
        """Ends it all."""
        self.stop_waiting()
        if self._store is not None:
            self._store.close()
        if self._inner is not None:
            self._inner.scoring.close()

    def _answers(self, items: Mapping[str, Piece], inner: Mapping[int, Score]) -> Answers:
        store = self._store = self._store or self._open()
        ask(store, [piece.item for piece in items.values()])
        if (raters := self._settings.raters) is not None:
            self._simulate(store, raters, items, inner)
        while (answers := use(store, items)) is None:
            self._wait(store, items)
        return answers

    def _open(self) -> Store:
        settings, seed = self._settings, self._asking.seed
        store = Store(self._asking.labels, settings.kind, per_item=settings.per_item, seed=seed)
        raters = () if settings.raters is None else range(1, settings.raters.raters + 1)
        made_up = [simulated.name(rater) for rater in raters]
        begin(store, {"per_item": settings.per_item, "seed": seed, "simulated": settings.simulated}, made_up)
        return store

    def _wait(self, store: Store, items: Mapping[str, Piece]) -> None:
        asking, before, since = self._asking, 0, time.monotonic()
        assert asking.says is not None
        with asking.at_once():
            while left := missing(store, items):
                if left != before:
                    asking.says(f"waiting for {left} rating{'s' if left > 1 else ''}: {asking.how}")
                    before = left
                if self._stopped.wait(_POLL) or asking.stop is not None:
                    raise Interrupted(asking.stop or "nobody waits any more")
        asking.says("")
        asking.waited += time.monotonic() - since

    def _simulate(
        self, store: Store, raters: Simulated, items: Mapping[str, Piece], inner: Mapping[int, Score]
    ) -> None:
        seed, per_item = self._asking.seed, self._settings.per_item
        who = {
            (item, simulated.name(rater)): rater
            for item in items
            for rater in simulated.raters_of(item, per_item, raters, seed)
        }

        def say(item: str, annotator: str, shown: list[str]) -> Mapping[str, Any]:
            true = [inner[items[item].rows[sha][0]] for sha in shown]
            known = [value for value in true if isinstance(value, float)]
            rater = who[item, annotator]
            return simulated.answer(store.kind, known, shown, raters, seed=seed, item=item, rater=rater)

        simulate(store, who, say)

    def _said(self, piece: Piece, answers: Answers) -> dict[str, Score]:
        """Of every text the mean of what people said; where all have skipped, none has a reward."""
        given: dict[str, list[float]] = {sha: [] for sha in piece.rows}
        for shown, answer in answers[piece.item.id]:
            kind = self._settings.asked
            for sha, reward in zip(shown, rewards(kind, worths(kind, answer, len(shown))), strict=True):
                given[sha].append(reward)
        skipped = Trouble("skipped", "everybody has skipped it")
        return {sha: fmean(values) if values else skipped for sha, values in given.items()}


@dataclass(frozen=True, slots=True)
class Inner:
    """The reward from which people are simulated."""

    scoring: Scoring
    spec: RewardSpec
    raters: Simulated

    def score(self, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> dict[int, Score]:
        """Between 0, for `low`, and 1, for `high`; none where it has none."""
        low, high = self.raters.low, self.raters.high
        plain = {name: values for name, values in columns.items() if name not in INSIDE}
        batch = self.scoring.score(plain if isinstance(self.scoring, Pool) else columns, state)

        def scaled(score: float) -> float:
            return min(max((self.spec.weight * self.spec.clipped(score) - low) / (high - low), 0.0), 1.0)

        return {row: scaled(score) if isinstance(score, float) else score for row, score in batch.scores.items()}


def pieces(
    columns: Mapping[str, Sequence[Any]], together: int, leave_out: Mapping[int, Any] | None = None
) -> Iterator[Piece]:
    """Of each group so many completions at a time, in order."""
    for _, same in groupby(range(len(columns["completions"])), key=lambda row: columns["group_index"][row]):
        rows = [row for row in same if row not in (leave_out or {})]
        for start in range(0, len(rows), together):
            texts: dict[str, list[int]] = {}
            for row in rows[start : start + together]:
                texts.setdefault(digest(columns["completions"][row]), []).append(row)
            completions = [columns["completions"][at[0]] for at in texts.values()]
            yield Piece(Item(columns["prompts"][rows[start]], completions), texts)
