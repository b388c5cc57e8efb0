"""A batch of completions while it is scored, and what became of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gro.rewards.functions import TrainerState

Kind = Literal["raised", "hung", "died", "value", "return", "untried", "skipped"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a completion has no score."""

    kind: Kind
    """raised an error; hung past the limit; its process died; unfit value; no proper list to return; untried since
    other calls had used up the time; skipped by the people who were asked, which is no failure."""
    message: str
    traceback: str = ""
    output: str = ""
    """The end of what the reward printed."""


Score = float | None | Trouble
"""None: the reward does not apply to this completion."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Completions that go to a worker together, by their place in the batch."""

    rows: Sequence[int]
    one_by_one: bool
    again: bool = False
    """A repetition after a failed batch call: the time that it takes is counted as lost."""


@dataclass(slots=True)
class Batch:
    """One batch on its way, and in the end its result."""

    columns: Mapping[str, Sequence[Any]]
    state: TrainerState
    queue: deque[Piece]
    scores: dict[int, Score] = field(default_factory=dict)
    """By place in the batch."""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """What the reward logged, call by call."""
    extra: dict[str, dict[int, Any]] = field(default_factory=dict)
    """Columns that the reward logged, by place in the batch."""
    lost: float = 0.0
    """Seconds that failing calls have cost."""
    seconds: float = 0.0
    """What it took as a whole."""
    failed_starts: int = 0

    def repeat(self, rows: Sequence[int]) -> None:
        """One by one, in pieces of one: between two pieces the time that was lost is looked at."""
        self.queue.extend(Piece((row,), one_by_one=True, again=True) for row in rows)

    def fail(self, rows: Sequence[int], trouble: Trouble) -> None:
        for row in rows:
            self.scores[row] = trouble
