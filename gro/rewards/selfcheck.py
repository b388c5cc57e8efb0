"""Does a reward give each completion its own score, and the same one later?  Found out where it is cheap.

At first use a few completions are scored in two orders.  They are kept, and asked about again now and then: a reward
whose state was changed by a hostile completion, or by itself, is noticed by what it says of the same text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gro.errors import GroError
from gro.rewards.batch import Batch
from gro.rewards.functions import TrainerState
from gro.rewards.pool import Pool

CHECKED = 8
"""Completions that are scored again."""
CHEAP = 1.0
"""Seconds.  A reward whose first batch took longer is not called again for this."""
CANARY_EVERY = 20
"""Calls of `score` between two looks at the canaries."""


def check_order(
    pool: Pool, name: str, batch: Batch, columns: Mapping[str, Sequence[Any]], state: TrainerState
) -> str | None:
    """Scores a few completions in two orders.

    Raises GroError where the score depends on the place in the list.  Returns a notice where the function gives
    different scores when asked twice, None where all is well or nothing can be said.
    """
    rows = [row for row, score in sorted(batch.scores.items()) if isinstance(score, float)]
    rows = rows[:: max(1, len(rows) // CHECKED)][:CHECKED]
    if len(rows) < 2 or batch.seconds > CHEAP:
        return None
    turned = rows[::-1]
    straight = _scores(pool, columns, rows, state)
    backward = _scores(pool, columns, turned, state)
    if straight is None or backward is None:
        return None  # it failed where it had not failed before; the steps to come will tell
    if _same(straight, backward[::-1]):
        return None
    again = _scores(pool, columns, rows, state)
    if again is None or not _same(straight, again):
        return (
            f"reward {name!r} gives the same completions different scores when asked twice "
            f"({_pair(straight, again or [])}): a run with it cannot be repeated exactly"
        )
    if pool.samplewise:
        return None
    raise GroError(
        f"reward {name!r} mixes up its completions: given the same {len(rows)} in reverse order, it returned scores "
        f"that are not the same in reverse order ({_pair(straight, backward[::-1])}). The i-th value must belong to "
        "the i-th completion"
    )


def _scores(
    pool: Pool, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], state: TrainerState
) -> list[float] | None:
    batch = pool.score({name: [values[row] for row in rows] for name, values in columns.items()}, state)
    scores = [score for _, score in sorted(batch.scores.items()) if isinstance(score, float)]
    return scores if len(scores) == len(rows) else None


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    # A model that scores a batch may differ in the last bits with the order of the batch.
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


def _pair(a: Sequence[float], b: Sequence[float]) -> str:
    return next((f"{x:g} and {y:g}" for x, y in zip(a, b, strict=False) if not _same([x], [y])), "of different number")


@dataclass(slots=True)
class Canaries:
    """Completions of the first batch, with what the reward said of them then: of them alone, as it may compare them."""

    columns: Mapping[str, Sequence[Any]]
    state: TrainerState
    scores: Sequence[float]
    step: int
    calls: int = 0
    """Of `score`, since they were last asked about."""
    told: bool = False

    @classmethod
    def of(cls, pool: Pool, batch: Batch, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> Canaries | None:
        """None where asking again would be slow or tell nothing, as the reward does not even say the same twice."""
        rows = [row for row, score in sorted(batch.scores.items()) if isinstance(score, float)][:CHECKED]
        if not rows or batch.seconds > CHEAP:
            return None
        said = _scores(pool, columns, rows, state)
        if pool.samplewise:
            first: list[float] | None = [score for row in rows if isinstance(score := batch.scores[row], float)]
        else:
            first = _scores(pool, columns, rows, state)
        if said is None or first is None or not _same(first, said):
            return None
        kept = {name: [values[row] for row in rows] for name, values in columns.items()}
        return cls(kept, state, first, state.global_step)

    def drifted(self, pool: Pool, name: str) -> str | None:
        """Asks again, each CANARY_EVERY calls: a notice where the answer is another, and new processes.

        The processes of a function that sees whole batches are left alone, and it is told once: what it remembers from
        one call to the next may be meant.
        """
        self.calls += 1
        if self.calls < CANARY_EVERY or self.told:
            return None
        self.calls = 0
        now = _scores(pool, self.columns, range(len(self.scores)), self.state)
        if now is None or _same(self.scores, now):
            return None  # where it fails, the failures tell
        said = (
            f"reward {name!r} gives a completion of step {self.step} another score than it did then "
            f"({_pair(self.scores, now)}): "
        )
        if pool.samplewise:
            pool.restart()
            return said + "something has changed its state; its processes were replaced"
        self.told = True
        return said + "it remembers something, so a run with it cannot be repeated exactly"
